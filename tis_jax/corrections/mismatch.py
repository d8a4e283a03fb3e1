"""What a batch says of the gap between sampler and learner, and of its correction.

Taken from the log-ratio `d = old_logp - sampler_logp` over the incoming mask (raw,
before any stage) and from what the stages made of it (applied). Expectations are under
the sampler, which drew the tokens: `E[-d]` and `E[rho - 1 - d]` estimate
KL(sampler || learner), `E[rho d]` and `E[rho d - rho + 1]` KL(learner || sampler).
"""

import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming, finite_logp
from tis_jax.corrections.state import State
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.metrics import (
  UNIT,
  EffectiveSampleSize,
  HeavyMean,
  Max,
  Mean,
  Metrics,
  Min,
  Sum,
  fraction,
  fraction_of,
  maximum,
  mean,
  mean_of_sums,
  minimum,
  ratio,
  total,
)
from tis_jax.numerics.ratios import clamp_log
from tis_jax.numerics.rows import Rows


def core_metrics(batch: Incoming, state: State) -> Metrics:
  """What a run is watched by, in few passes over the batch: all sums are by row first.

  Returns:
    Poolable metrics:
    `mismatch/*`: k1 and k3 in both directions, chi-square by token and by sequence, the
    log-ratio and its extremes, catastrophic tokens, perplexities and their gap, and the
    effective sample size of whole-sequence ratios; all raw.
    `weight/*`: mean, extremes and effective sample size of the weight, raw (the ratio
    at the level the chain weights by) and applied, and `gradient_scale`, the applied
    weight per incoming token: far below 1 it is a hidden cut of the learning rate.
    `rejected/*`, `tokens/*`, `sequences/*`: shares and counts.
  """
  return (
    _token_metrics(batch.sums, state)
    | _sequence_metrics(batch, state)
    | _weight_metrics(batch, state)
  )


def reward_metrics(batch: Incoming, state: State, rewards) -> Metrics:
  """Rewards against rejections, and the reward that the learner would have had.

  Args:
    batch: the batch.
    state: the state after the last stage.
    rewards: `[B]`, or `[B, T]` for packed rows (each sequence's at its tokens).

  Returns:
    Poolable metrics: `reward/sampler`, the mean over sequences;
    `reward/learner_weighted` and `reward/learner_normalized`, estimates of the
    learner's with the whole sequence's ratio, uncut (the first unbiased, the second
    less noisy); `rejected/positive_sequences` and `rejected/other_sequences`, the share
    rejected of those with a reward above 0 and of the rest.
  """
  held, accepted = batch.units(batch.mask), batch.held(state)
  rewards = jnp.where(held, rewards[:, None] if rewards.ndim == 1 else rewards, 0.0)
  rewards = as_float(rewards)
  product = jnp.exp(batch.level("sequence", batch.begin()))
  product = jnp.where(held, product, 0.0)
  good = rewards > 0
  return {
    "reward/sampler": mean(rewards, held),
    "reward/learner_weighted": mean(product * rewards, held),
    "reward/learner_normalized": ratio((product * rewards).sum(), product.sum()),
    "rejected/positive_sequences": fraction(~accepted, held & good),
    "rejected/other_sequences": fraction(~accepted, held & ~good),
  }


def _token_metrics(sums: Rows, state: State) -> Metrics:
  total = {name: x.sum() for name, x in sums.total.items()}
  known, incoming = total["known"], total["incoming"]

  def token_mean(name, squares=None) -> Mean:
    return mean_of_sums(total[name], total[f"{squares or name}_squares"], known)

  k1 = token_mean("clamped")
  k1_reverse = total["k3_reverse"] + total["excess"]
  chi2 = (total["excess_squares"] + 2.0 * total["excess"]) / UNIT
  return {
    "mismatch/k1": k1._replace(total=-k1.total),
    "mismatch/k3": token_mean("k3"),
    "mismatch/k1_reverse": mean_of_sums(k1_reverse, total["k1_reverse_squares"], known),
    "mismatch/k3_reverse": token_mean("k3_reverse"),
    "mismatch/chi2_token": HeavyMean(*mean_of_sums(chi2, total["chi2_squares"], known)),
    "mismatch/abs_log_ratio": token_mean("abs", squares="clamped"),
    "mismatch/log_ratio_max": Max(_fp32(sums.largest["log_ratio"].max())),
    "mismatch/log_ratio_min": Min(_fp32(sums.smallest["log_ratio"].min())),
    "mismatch/catastrophic_tokens": fraction_of(total["catastrophic"], known),
    "tokens/count": Sum(_fp32(incoming)),
    "tokens/missing": fraction_of(incoming - known, incoming),
    "rejected/tokens": fraction_of(incoming - state.token_count(), incoming),
  }


def _sequence_metrics(batch: Incoming, state: State) -> Metrics:
  if not state.packed:
    sums = batch.sums
    count, held = sums.total["known"], sums.total["incoming"] > 0
    learner, log_product = -sums.total["old_logp"], sums.total["log_ratio"]
    known = count > 0
  else:
    whole = batch.begin()
    count = batch.unit_count(batch.known)
    held, known = batch.units(batch.mask), batch.units(batch.known)
    learner = -batch.unit_sum(finite_logp(batch.inputs.old_logp, batch.known), whole)
    log_product = batch.unit_sum("log_ratio", whole)
  learner, gap = (x / jnp.maximum(count, 1.0) for x in (learner, log_product))
  # A sampler's log-prob is taken from the other two, clamped as the ratio is.
  sampler = jnp.minimum(learner + gap, 40.0)
  log_product = clamp_log(log_product)
  product = jnp.where(known, jnp.exp(log_product), 0.0)
  number, squares = known.sum(dtype=product.dtype), (product * product).sum()
  return {
    "mismatch/chi2_sequence": HeavyMean(
      *mean(jnp.expm1(2.0 * log_product) / UNIT, known)
    ),
    "mismatch/ess_sequence": EffectiveSampleSize(product.sum(), squares, number),
    "mismatch/sequence_log_ratio": mean(log_product, known),
    "mismatch/ppl_learner": mean(jnp.exp(learner), known),
    "mismatch/ppl_sampler": mean(jnp.exp(sampler), known),
    "mismatch/log_ppl_learner": mean(learner, known),
    "mismatch/log_ppl_sampler": mean(sampler, known),
    "mismatch/log_ppl_gap": mean(gap, known),
    "mismatch/log_ppl_gap_abs": mean(jnp.abs(gap), known),
    "mismatch/log_ppl_gap_max": maximum(gap, known),
    "mismatch/log_ppl_gap_min": minimum(gap, known),
    "mismatch/ppl_ratio": mean(jnp.exp(clamp_log(gap)), known, pivot=1.0),
    "sequences/count": total(held),
    "rejected/sequences": fraction(~batch.held(state), held),
  }


def _weight_metrics(batch: Incoming, state: State) -> Metrics:
  if state.raw is None:
    raw, raw_max, raw_min = _token_ratio(batch.sums)
  else:
    raw, raw_max, raw_min = batch.begin().summary(state.raw)
  applied, applied_max, applied_min = state.summary(state.weight)
  return {
    "weight/raw_mean": raw,
    "weight/raw_max": raw_max,
    "weight/raw_min": raw_min,
    "weight/ess_raw": _ess(raw),
    "weight/mean": applied,
    "weight/max": applied_max,
    "weight/min": applied_min,
    "weight/ess": _ess(applied),
    "weight/gradient_scale": ratio(applied.total, batch.sums.total["incoming"].sum()),
  }


def _token_ratio(sums: Rows) -> tuple[Mean, Max, Min]:
  """The token ratio's summary, from sums that are there already."""
  excess, squares, known = (
    sums.total[name].sum() for name in ("excess", "excess_squares", "known")
  )
  return (
    mean_of_sums(excess, squares, known, pivot=1.0),
    Max(_fp32(jnp.exp(sums.largest["log_ratio"].max()))),
    Min(_fp32(jnp.exp(sums.smallest["log_ratio"].min()))),
  )


def _ess(weights: Mean) -> EffectiveSampleSize:
  """From the sums of a mean: `sum w^2 = sum (w - mean)^2 + (sum w)^2 / n`."""
  squares = weights.squares + weights.total**2 / jnp.maximum(weights.count, 1.0)
  return EffectiveSampleSize(weights.total, squares, weights.count)


def _fp32(x):
  return x.astype(jnp.float32)
