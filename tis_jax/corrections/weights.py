"""Stages that make the weight: one to a chain, of one ratio at one level."""

import jax.numpy as jnp

from tis_jax.corrections.stage import (
  Batch,
  Level,
  Stage,
  State,
  check_band,
  check_bound,
  check_level,
  log_bound,
)
from tis_jax.diagnostics.metrics import Metrics, fraction


def importance(level: Level = "sequence") -> Stage:
  """Plain importance sampling: the weight is the ratio itself.

  `w = rho`, unbiased at level "sequence", and of a variance that grows with length.

  Args:
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: an unknown level.
  """
  check_level("importance", level)
  return Stage(_importance, {}, "importance", "weight", (("level", level),))


def truncate(high=2.0, *, level: Level = "token") -> Stage:
  """Truncated importance sampling: `w = min(rho, high)`.

  Args:
    high: the cap on the ratio, above 0; may be traced.
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: a cap that is not above 0, or an unknown level.

  Source: Ionides, "Truncated importance sampling" (2008); Yao, Liu et al., "Your
  efficient RL framework secretly brings you off-policy RL training" (2025).

  >>> from tis_jax.corrections import chain
  >>> correct = chain(truncate(2.0))
  >>> out = correct(jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.3, 0.2]])),
  ...               jnp.array([[True, True]]))
  >>> out.weight.tolist()
  [[2.0, 0.5]]
  """
  check_bound("truncate", "high", high)
  check_level("truncate", level)
  return Stage(_truncate, {"high": high}, "truncate", "weight", (("level", level),))


def clip(high=2.0, low=None, *, level: Level = "token") -> Stage:
  """Both bounds, value kept inside: `w = min(max(rho, low), high)`.

  Args:
    high: the upper bound on the ratio, above 0; may be traced.
    low: the lower bound; None means `1 / high`.
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: bounds out of order or not positive, or an unknown level.
  """
  check_bound("clip", "high", high)
  low = 1.0 / high if low is None else low
  check_band("clip", low, high)
  check_level("clip", level)
  return Stage(_clip, {"high": high, "low": low}, "clip", "weight", (("level", level),))


def zero_outside(high=5.0, low=None, *, level: Level = "token") -> Stage:
  """The ratio inside the band, 0 outside: `w = rho 1[low <= rho <= high]`.

  A token outside stays in the mask: it adds 0 to the loss and still counts in the
  denominator. To take it out of the mask, write `reject(...)` and `importance(...)`.

  Args:
    high: the upper bound on the ratio, inclusive; may be traced.
    low: the lower bound, inclusive; None means `1 / high`.
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: bounds out of order or not positive, or an unknown level.

  Source: IcePop in "Every Step Evolves: Scaling Reinforcement Learning for
  Trillion-Scale Thinking Model" (arXiv 2510.18855).
  """
  check_bound("zero_outside", "high", high)
  low = 1.0 / high if low is None else low
  check_band("zero_outside", low, high)
  check_level("zero_outside", level)
  thresholds = {"log_high": log_bound(high), "log_low": log_bound(low)}
  return Stage(_zero_outside, thresholds, "zero_outside", "weight", (("level", level),))


def _importance(batch: Batch, state: State, *, level: Level) -> tuple[State, Metrics]:
  raw = jnp.exp(batch.level(level, state.tokens))
  return weigh(batch, state, raw, raw, level), {}


def _truncate(batch, state, *, high, level):
  raw = jnp.exp(batch.level(level, state.tokens))
  counted = batch.known & state.mask
  metrics = {"high": fraction(raw > high, counted)}
  return weigh(batch, state, raw, jnp.minimum(raw, high), level), metrics


def _clip(batch, state, *, high, low, level):
  raw = jnp.exp(batch.level(level, state.tokens))
  counted = batch.known & state.mask
  metrics = {"high": fraction(raw > high, counted), "low": fraction(raw < low, counted)}
  return weigh(batch, state, raw, jnp.clip(raw, low, high), level), metrics


def _zero_outside(batch, state, *, log_high, log_low, level):
  log_raw = batch.level(level, state.tokens)
  raw = jnp.exp(log_raw)
  counted = batch.known & state.mask
  high, low = log_raw > log_high, log_raw < log_low
  metrics = {"high": fraction(high, counted), "low": fraction(low, counted)}
  return weigh(batch, state, raw, jnp.where(high | low, 0.0, raw), level), metrics


def weigh(batch: Batch, state: State, raw, weight, level: Level) -> State:
  """Sets the weight of every token, and 1 where a token's own ratio is not known."""
  if level == "token":
    weight = jnp.where(batch.known, weight, 1.0)
  return state._replace(weight=jnp.broadcast_to(weight, state.mask.shape), raw=raw)
