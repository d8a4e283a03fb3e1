"""Stages that reject by a distance between the policies rather than by their ratio."""

import math
from typing import Literal

import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.rejections import drop
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import State, reject_tokens
from tis_jax.numerics.checks import check_choice, check_number, check_order
from tis_jax.numerics.metrics import Metrics
from tis_jax.numerics.ratios import DIVERGENCES, clamp_log

Reduce = Literal["token", "sum", "mean", "max"]


def reject_divergence(
  high, low=None, *, kind: str = "k3", reduce: Reduce = "mean"
) -> Stage:
  """Drops tokens or sequences whose divergence estimate lies outside its bounds.

  `k1 = -log rho`, `k2 = (log rho)^2 / 2`, `k3 = rho - 1 - log rho`, all in nats, and
  `exp_abs = exp(|log rho|)`, the factor by which the ratio is off.

  Args:
    high: the upper bound on the estimate, inclusive; may be traced.
    low: the lower bound, for k1 alone, which is signed; None means `-high`. For bounds
      on the ratio itself, write `reject(...)`.
    kind: "k1", "k2", "k3" or "exp_abs".
    reduce: "token" rejects tokens; "sum", "mean" or "max" over the sequence's tokens
      reject sequences.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: a bound that is not positive, an unknown kind or reduction, `low` for a
      kind that is never negative, or the largest k1, which `veto` bounds as a ratio.

  Source: the rejection statistics of verl's `rollout_rs`; "exp_abs" by the mean is
  NeMo-RL's `seq_logprob_error_threshold`.

  >>> from tis_jax.corrections import chain
  >>> old = jnp.log(jnp.array([[0.5, 0.9], [0.5, 0.5]]))
  >>> sampler = jnp.log(jnp.full((2, 2), 0.5))
  >>> out = chain(reject_divergence(0.01))(old, sampler, jnp.ones((2, 2)))
  >>> out.mask.tolist()
  [[False, False], [True, True]]
  """
  name = "reject_divergence"
  check_choice(f"{name}: kind", kind, DIVERGENCES)
  check_choice(f"{name}: reduce", reduce, ("token", "sum", "mean", "max"))
  check_number(f"{name}: high", high, above=0)
  if kind != "k1" and low is not None:
    raise ValueError(f"{name}: {kind} is never negative, so low has no meaning")
  if kind == "k1" and reduce == "max":
    raise ValueError(f"{name}: for the extremes of k1, write veto(low, high)")
  thresholds = {"high": high}
  if kind == "k1":
    thresholds["low"] = -high if low is None else low
    check_number(f"{name}: low", thresholds["low"])
    check_order(name, thresholds["low"], high)
  return make_stage(
    _reject_divergence, makes="mask", thresholds=thresholds, kind=kind, reduce=reduce
  )


def _reject_divergence(
  batch: Incoming, state: State, *, high, low=-math.inf, kind, reduce
):
  # What is exponentiated is clamped, token by token; what is not cancels in a sum.
  d = batch.log_ratio if kind in ("k1", "k2") else clamp_log(batch.log_ratio)
  values = jnp.where(batch.known, DIVERGENCES[kind](d), 0.0)
  level = "token" if reduce == "token" else "sequence"
  # Sums of k3 are taken for the metrics as well.
  summed = "k3" if kind == "k3" else values
  if reduce == "sum":
    values = batch.unit_sum(summed, state)
  elif reduce == "mean":
    values = batch.unit_mean(summed, state)
  elif reduce == "max":
    values = batch.unit_max(values, state)
  return drop(batch, state, values > high, values < low, level)


def reject_probability_difference(
  high=0.2,
  low=None,
  *,
  reduce: Literal["token", "sum", "mean"] = "token",
  by_advantage: bool = False,
) -> Stage:
  """Drops what the two policies give too different a probability.

  Keeps `low <= pi_old - pi_sampler <= high`. For one token the difference is its part
  of the total variation distance, and it does not blow up at small probabilities.

  Args:
    high: the upper bound on the difference, above 0; may be traced.
    low: the lower bound, at most 0; None means `-high`.
    reduce: "token" rejects tokens; "sum" or "mean" over the sequence rejects sequences.
    by_advantage: bound only the side to which the gradient pushes further: above where
      the advantage is positive, below elsewhere. For tokens only; needs `advantages=`.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: bounds of one sign, an unknown reduction, or `by_advantage` for
      sequences.

  Source: DPPO-TV (arXiv 2602.04879) and prime-rl's default loss, which measure the
  current policy; ROLL's difference filter, which measures the old one as here.

  >>> from tis_jax.corrections import chain
  >>> correct = chain(reject_probability_difference())
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.5, 0.01]]))
  >>> correct(old, sampler, jnp.ones((1, 2))).mask.tolist()
  [[False, True]]
  """
  name = "reject_probability_difference"
  check_number(f"{name}: high", high, above=0)
  low = -high if low is None else low
  # Equal policies give 0, which must pass.
  check_number(f"{name}: low", low, at_most=0)
  check_choice(f"{name}: reduce", reduce, ("token", "sum", "mean"))
  if by_advantage and reduce != "token":
    raise ValueError(f"{name}: by_advantage goes with reduce='token'")
  return make_stage(
    _reject_probability_difference,
    makes="mask",
    thresholds={"high": high, "low": low},
    needs=("advantages",) if by_advantage else (),
    reduce=reduce,
    by_advantage=by_advantage,
  )


def _reject_probability_difference(
  batch: Incoming, state: State, *, high, low, reduce, by_advantage
):
  old, sampler = (
    jnp.exp(clamp_log(jnp.where(batch.known, logp, 0.0)))
    for logp in (batch.inputs.old_logp, batch.inputs.sampler_logp)
  )
  values = old - sampler
  if reduce == "sum":
    values = batch.unit_sum(values, state)
  elif reduce == "mean":
    values = batch.unit_mean(values, state)
  above, below = values > high, values < low
  if by_advantage:
    above, below = above & (batch.advantages > 0), below & ~(batch.advantages > 0)
  level = "token" if reduce == "token" else "sequence"
  return drop(batch, state, above, below, level)


def reject_negative_divergence(high) -> Stage:
  """Drops what has a negative advantage in a sequence that the learner has left behind.

  Out go tokens with `A < 0` in a sequence with `mean(log sampler - log old) > high`:
  pushing down what the learner hardly samples any more is what destabilises. With
  `[B]` advantages that is the whole sequence.

  Args:
    high: the largest mean divergence in nats, above 0; may be traced. TRL's guide
      suggests 0.5, slime's default is 1e-4.

  Returns:
    A stage for `chain`; needs `advantages=`.

  Raises:
    ValueError: a bound that is not above 0.

  Source: off-policy sequence masking, DeepSeek-V3.2 (arXiv 2512.02556), which compares
  with the current policy; here, as in slime, with the old one.

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.full((2, 1), -2.0), jnp.full((2, 1), -1.0)
  >>> out = chain(reject_negative_divergence(0.5))(
  ...   old, sampler, jnp.ones((2, 1)), advantages=jnp.array([1.0, -1.0]))
  >>> out.mask.tolist()
  [[True], [False]]
  """
  check_number("reject_negative_divergence: high", high, above=0)
  return make_stage(
    _reject_negative_divergence,
    makes="mask",
    thresholds={"high": high},
    needs=("advantages",),
  )


def _reject_negative_divergence(batch: Incoming, state: State, *, high):
  mean_k1 = -batch.unit_mean("log_ratio", state)
  out = (mean_k1 > high) & (batch.advantages < 0)
  never = jnp.zeros_like(out)
  if out.shape[1] == 1:
    return drop(batch, state, out, never, "sequence")
  # Advantages by token: what goes is part of a sequence, of known ratio or not.
  metrics: Metrics = {"high": state.fraction(out)}
  return reject_tokens(state, out), metrics
