"""Stages that make the weight: one to a chain, of one ratio at one level."""

import jax
import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import LEVELS, Level, State
from tis_jax.numerics.checks import check_band, check_choice, check_number
from tis_jax.numerics.metrics import Metrics


def importance(level: Level = "sequence") -> Stage:
  """Plain importance sampling: the weight is the ratio itself.

  `w = rho`: unbiased at level "sequence", with a variance that grows with the length.

  Args:
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: an unknown level.

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.log(jnp.array([[0.4, 0.6]])), jnp.log(jnp.array([[0.2, 0.8]]))
  >>> chain(importance("sequence"))(old, sampler, jnp.ones((1, 2))).weight.tolist()
  [[1.5, 1.5]]
  """
  check_choice("importance: level", level, LEVELS)
  return make_stage(_importance, makes="weight", level=level)


def _importance(
  batch: Incoming, state: State, *, level: Level
) -> tuple[State, Metrics]:
  raw = raw_ratio(batch, state, level)
  return set_weight(batch, state, raw, raw, level), {}


def truncate(high=2.0, *, level: Level = "token") -> Stage:
  """Truncated importance sampling: `w = min(rho, high)`.

  Args:
    high: the cap on the ratio, above 0; may be traced.
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`. Its metrics are the shares of tokens above `high` and, left as
    they are, below `1 / high`.

  Raises:
    ValueError: a cap that is not above 0, or an unknown level.

  Source: Ionides, "Truncated importance sampling" (2008); Yao, Liu et al., "Your
  efficient RL framework secretly brings you off-policy RL training" (2025).

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.3, 0.2]]))
  >>> chain(truncate(2.0))(old, sampler, jnp.ones((1, 2))).weight.tolist()
  [[2.0, 0.5]]
  """
  check_number("truncate: high", high, above=0)
  check_choice("truncate: level", level, LEVELS)
  return make_stage(_truncate, makes="weight", thresholds={"high": high}, level=level)


def _truncate(
  batch: Incoming, state: State, *, high, level: Level
) -> tuple[State, Metrics]:
  raw = raw_ratio(batch, state, level)
  # A ratio as far below 1 is as much of a gap, though no cap touches it.
  metrics: Metrics = {
    "high": state.fraction(raw > high),
    "low": state.fraction(raw < 1.0 / high),
  }
  return set_weight(batch, state, raw, jnp.minimum(raw, high), level), metrics


def clip(high=2.0, low=None, *, level: Level = "token") -> Stage:
  """Both bounds, value kept inside: `w = min(max(rho, low), high)`.

  Args:
    high: the upper bound on the ratio, above 0; may be traced.
    low: the lower bound; None means `1 / high`.
    level: what the ratio is taken over.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: bounds out of order or negative, or an unknown level.

  Source: `tis_mode: clip` of slime, `tis` of OpenRLHF and TRL's two-sided truncation.

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.3, 0.4]]))
  >>> chain(clip(2.0))(old, sampler, jnp.ones((1, 2))).weight.tolist()
  [[2.0, 0.5]]
  """
  check_number("clip: high", high, above=0)
  low = 1.0 / high if low is None else low
  check_band("clip", low, high)
  check_choice("clip: level", level, LEVELS)
  return make_stage(
    _clip, makes="weight", thresholds={"high": high, "low": low}, level=level
  )


def _clip(
  batch: Incoming, state: State, *, high, low, level: Level
) -> tuple[State, Metrics]:
  raw = raw_ratio(batch, state, level)
  metrics: Metrics = {
    "high": state.fraction(raw > high),
    "low": state.fraction(raw < low),
  }
  return set_weight(batch, state, raw, jnp.clip(raw, low, high), level), metrics


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
    ValueError: bounds out of order or negative, or an unknown level.

  Source: IcePop, in "Every step evolves: scaling reinforcement learning for
  trillion-scale thinking model" (arXiv 2510.18855).

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.1, 0.2]]))
  >>> out = chain(zero_outside(5.0))(old, sampler, jnp.ones((1, 2)))
  >>> out.weight.tolist(), out.mask.tolist()
  ([[0.0, 0.5]], [[True, True]])
  """
  check_number("zero_outside: high", high, above=0)
  low = 1.0 / high if low is None else low
  check_band("zero_outside", low, high)
  check_choice("zero_outside: level", level, LEVELS)
  return make_stage(
    _zero_outside,
    makes="weight",
    thresholds={"high": high, "low": low},
    logs=("high", "low"),
    level=level,
  )


def _zero_outside(
  batch: Incoming, state: State, *, log_high, log_low, level: Level
) -> tuple[State, Metrics]:
  log_raw = batch.level(level, state)
  raw = raw_ratio(batch, state, level)
  high, low = log_raw > log_high, log_raw < log_low
  metrics: Metrics = {"high": state.fraction(high), "low": state.fraction(low)}
  weight = jnp.where(high | low, 0.0, raw)
  return set_weight(batch, state, raw, weight, level), metrics


def raw_ratio(batch: Incoming, state: State, level: Level) -> jax.Array:
  """The ratio at `level`: `[B, T]`, or `[B, 1]` where rows are units."""
  return jnp.exp(batch.level(level, state))


def set_weight(batch: Incoming, state: State, raw, weight, level: Level) -> State:
  """Sets the weight of every token, and 1 where a token's own ratio is not known."""
  if level == "token":
    return state._replace(weight=jnp.where(batch.known, weight, 1.0))
  return state._replace(weight=weight, raw=raw)
