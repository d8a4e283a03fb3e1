"""Stages that take tokens, turns or sequences out of the mask by their ratio."""

import jax.numpy as jnp
import numpy as np

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import (
  LEVELS,
  TOKEN_LEVELS,
  TURN_LEVELS,
  Level,
  State,
  reject_where,
)
from tis_jax.numerics.checks import check_band, check_choice
from tis_jax.numerics.metrics import Metrics, fraction


def reject(high=None, low=None, *, level: Level = "sequence") -> Stage:
  """Drops what has a ratio outside `[low, high]`, bounds included in what is accepted.

  At the levels of tokens ("token", "prefix", "min_prefix") a token goes, at those of
  turns a turn, otherwise the sequence.
  The weight is left as it is: the mask says what trains.

  Args:
    high: the upper bound on the ratio; None means no upper bound. May be traced.
    low: the lower bound on the ratio; None means `1 / high`, 0 means none.
    level: what the ratio is taken over. "geometric" is the mean token ratio, which
      accepts ever more of the longer sequences; "root" (the product to the power
      1/sqrt(n)) accepts an equal share of every length under token noise.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: no bound at all, bounds out of order, or an unknown level.

  Source: Liu, Li et al., "When speed kills stability" (2025), for the geometric and the
  product form; SkyRL and verl for the bounds.

  >>> from tis_jax.corrections import chain
  >>> correct = chain(reject(2.0, level="token"))
  >>> old = jnp.log(jnp.array([[0.9, 0.3, 0.2]]))
  >>> sampler = jnp.log(jnp.full((1, 3), 0.3))
  >>> correct(old, sampler, jnp.ones((1, 3))).mask.tolist()
  [[False, True, True]]
  """
  check_choice("reject: level", level, LEVELS)
  if high is None and low is None:
    raise ValueError("reject: give high, low or both; with neither nothing is rejected")
  high = jnp.inf if high is None else high
  low = 1.0 / high if low is None else low
  check_band("reject", low, high)
  return make_stage(
    _reject,
    makes="mask",
    thresholds={"high": high, "low": low},
    logs=("high", "low"),
    level=level,
  )


def _reject(batch: Incoming, state: State, *, log_high, log_low, level: Level):
  log_raw = batch.level(level, state)
  return drop(batch, state, log_raw > log_high, log_raw < log_low, level)


def veto(low=1e-4, high=None) -> Stage:
  """Drops a sequence in which any token has a ratio below `low` or above `high`.

  Args:
    low: the smallest ratio a token may have; 0 or None for no lower bound. Ratios are
      clamped at exp(-20) = 2e-9, so a bound below that never fires. May be traced.
    high: the largest ratio a token may have; None for no upper bound.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: no bound at all, or bounds out of order.

  Source: verl's `rollout_is_veto_threshold`, SkyRL's `outlier_token_is_threshold_*`.

  >>> from tis_jax.corrections import chain
  >>> old = jnp.log(jnp.array([[0.5, 1e-6], [0.5, 0.4]]))
  >>> out = chain(veto(1e-4))(old, jnp.log(jnp.full((2, 2), 0.5)), jnp.ones((2, 2)))
  >>> out.mask.tolist()
  [[False, False], [True, True]]
  """
  if high is None and _is_zero(low):
    raise ValueError("veto: give low, high or both; with neither nothing is rejected")
  low = 0.0 if low is None else low
  high = jnp.inf if high is None else high
  check_band("veto", low, high)
  return make_stage(
    _veto, makes="mask", thresholds={"low": low, "high": high}, logs=("low", "high")
  )


def _veto(batch: Incoming, state: State, *, log_high, log_low):
  counted = batch.known & state.tokens
  high = batch.any_token(counted & (batch.log_ratio > log_high))
  low = batch.any_token(counted & (batch.log_ratio < log_low))
  return drop(batch, state, high, low, "sequence")


def reject_missing(level: Level = "token") -> Stage:
  """Drops tokens without a sampler log-prob, or the sequences that hold one.

  Without this stage such a token trains with weight 1 and is counted. To refuse the
  batch instead, call `check_present` where it comes in.

  Args:
    level: "token" drops the token, "turn" its turn, "sequence" its sequence.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: another level.

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.zeros((1, 2)), jnp.array([[0.0, jnp.nan]])
  >>> chain(reject_missing())(old, sampler, jnp.ones((1, 2))).mask.tolist()
  [[True, False]]
  """
  check_choice("reject_missing: level", level, ("token", "turn", "sequence"))
  return make_stage(_reject_missing, makes="mask", level=level)


def _reject_missing(batch: Incoming, state: State, *, level: Level):
  missing = state.tokens & ~batch.known
  if level != "token":
    missing = batch.any_token(missing, level)
  return reject_where(state, missing, level), {}


def drop(
  batch: Incoming, state: State, high, low, level: Level
) -> tuple[State, Metrics]:
  """Rejects what is too high or too low; a token of unknown ratio is never either."""
  if level == "token":
    high, low = high & batch.known, low & batch.known
  metrics: Metrics = {"high": state.fraction(high), "low": state.fraction(low)}
  if level not in TOKEN_LEVELS:
    units = batch.held(state, level)
    name = "turns" if level in TURN_LEVELS else "sequences"
    metrics[f"{name}_high"] = fraction(high, units)
    metrics[f"{name}_low"] = fraction(low, units)
  return reject_where(state, high | low, level), metrics


def check_present(sampler_logp, mask, present=None) -> None:
  """Refuses a batch in which a token that trains has no sampler log-prob.

  For the host, where a batch comes in: it reads the values, so it cannot be jitted.

  Args:
    sampler_logp: `[B, T]`.
    mask: `[B, T]` bool or 0/1.
    present: `[B, T]` bool, False where no log-prob was reported; NaN says so too.

  Raises:
    ValueError: naming how many tokens lack one, and in which rows.

  >>> check_present([[-0.5, float("nan")]], [[1, 1]])
  Traceback (most recent call last):
  ...
  ValueError: 1 of 2 tokens that train have no sampler log-prob, in rows [0]
  """
  mask = np.asarray(mask) != 0
  missing = np.isnan(np.asarray(sampler_logp, np.float32))
  if present is not None:
    missing |= np.asarray(present) == 0
  missing &= mask
  if missing.any():
    rows = np.flatnonzero(missing.any(axis=1))
    shown = f"{rows[:10].tolist()}" + (" and more" if rows.size > 10 else "")
    raise ValueError(
      f"{missing.sum()} of {mask.sum()} tokens that train have no sampler log-prob,"
      f" in rows {shown}"
    )


def _is_zero(bound) -> bool:
  return bound is None or (isinstance(bound, (int, float)) and bound == 0)
