"""What a batch says of the gap between sampler and learner, and of its correction.

Taken from the log-ratio `d = old_logp - sampler_logp` of the incoming mask (raw, before
any stage) and from what the stages made of it (applied). Expectations are under the
sampler, which drew the tokens: `E[d]` estimates `-KL(sampler || learner)`, `E[rho d]`
estimates `KL(learner || sampler)`.
"""

import math

import jax.numpy as jnp

from tis_jax.corrections import ratios
from tis_jax.diagnostics.metrics import (
  EffectiveSampleSize,
  Metrics,
  fraction,
  maximum,
  mean,
  mean_of_sums,
  minimum,
  ratio,
  total,
)

CATASTROPHE = math.log(1e4)
"""A token whose ratio is off by this factor is a defect, not numerics."""


def mismatch_metrics(batch, state, weight, *, rewards=None, full=False) -> Metrics:
  """All metrics of one corrected batch. See `core_metrics` and `detail_metrics`."""
  del rewards, full
  return core_metrics(batch, state, weight)


def core_metrics(batch, state, weight) -> Metrics:
  """What a run is watched by: one pass over the batch, all sums by row first."""
  d, known = batch.log_ratio, batch.known
  tokens = known.sum(dtype=jnp.float32)
  rho = jnp.exp(d)
  excess = jnp.where(known, rho - 1.0, 0.0)
  k3, k3_reverse = ratios.k3(d), ratios.k3_reverse(d)

  def token_mean(x, pivot=0.0):
    # x is 0 where a token is not known, because d is.
    return mean_of_sums(_sum(x), _sum(x * x), tokens, pivot=pivot)

  k1 = token_mean(-d)
  metrics = {
    "mismatch/k1": k1,
    "mismatch/k3": token_mean(k3),
    "mismatch/k1_reverse": token_mean(rho * d),
    "mismatch/k3_reverse": token_mean(k3_reverse),
    "mismatch/chi2_token": token_mean(excess * (2.0 + excess)),
    "mismatch/abs_log_ratio": token_mean(jnp.abs(d)),
    "mismatch/log_ratio_max": maximum(d, known),
    "mismatch/log_ratio_min": minimum(d, known),
    "mismatch/catastrophic_tokens": fraction(jnp.abs(d) > CATASTROPHE, known),
    "tokens/count": total(batch.mask),
    "tokens/missing": fraction(~known, batch.mask),
    "rejected/tokens": fraction(~state.mask, batch.mask),
  }
  return (
    metrics | _sequence_metrics(batch, state) | _weight_metrics(batch, state, weight)
  )


def _sequence_metrics(batch, state) -> Metrics:
  count = batch.count("sequence", batch.mask)
  log_product = batch.level("sequence", batch.mask)
  starts = batch.starts("sequence")
  per_token = jnp.maximum(count, 1.0)
  learner = -ratios.unit_sum(batch.old_logp, starts) / per_token
  sampler = -ratios.unit_sum(batch.sampler_logp, starts) / per_token
  gap = sampler - learner
  held = batch.first("sequence", batch.mask)
  kept = _any(state.mask, starts)
  known = held & (count > 0)
  product = jnp.where(known, jnp.exp(log_product), 0.0)
  squared = product * product
  return {
    "mismatch/chi2_sequence": mean(squared - 1.0, known),
    "mismatch/ess_sequence": EffectiveSampleSize(
      _sum(product), _sum(squared), known.sum(dtype=jnp.float32)
    ),
    "mismatch/sequence_log_ratio": mean(log_product, known),
    "mismatch/ppl_learner": mean(jnp.exp(learner), known),
    "mismatch/ppl_sampler": mean(jnp.exp(sampler), known),
    "mismatch/log_ppl_learner": mean(learner, known),
    "mismatch/log_ppl_sampler": mean(sampler, known),
    "mismatch/log_ppl_gap": mean(gap, known),
    "mismatch/log_ppl_gap_abs": mean(jnp.abs(gap), known),
    "mismatch/log_ppl_gap_max": maximum(gap, known),
    "mismatch/log_ppl_gap_min": minimum(gap, known),
    "mismatch/ppl_ratio": mean(jnp.exp(gap), known),
    "sequences/count": total(held),
    "rejected/sequences": fraction(~kept, held),
  }


def _weight_metrics(batch, state, weight) -> Metrics:
  raw = jnp.exp(batch.log_ratio) if state.raw is None else state.raw
  raw = jnp.where(batch.mask, jnp.broadcast_to(raw, weight.shape), 0.0)
  trains = state.mask
  applied = jnp.where(trains, weight, 0.0)
  counted = batch.mask.sum(dtype=jnp.float32)
  training = trains.sum(dtype=jnp.float32)
  applied_sum, applied_squares = _sum(applied), _sum(applied * applied)
  return {
    "weight/raw_mean": mean(raw, batch.mask, pivot=1.0),
    "weight/raw_max": maximum(raw, batch.mask),
    "weight/raw_min": minimum(raw, batch.mask),
    "weight/ess_raw": EffectiveSampleSize(_sum(raw), _sum(raw * raw), counted),
    "weight/mean": mean(applied, trains, pivot=1.0),
    "weight/max": maximum(applied, trains),
    "weight/min": minimum(applied, trains),
    "weight/ess": EffectiveSampleSize(applied_sum, applied_squares, training),
    "weight/gradient_scale": ratio(applied_sum, counted),
  }


def _any(condition, starts):
  if starts is None:
    return condition.any(axis=1, keepdims=True)
  return ratios.unit_max(condition.astype(jnp.float32), starts) > 0


def _sum(x):
  return x.sum(dtype=jnp.float32)
