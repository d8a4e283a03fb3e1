"""Ratios of two policies' token log-probs, at every level, as small pure functions.

Everything here takes and returns arrays. A log-ratio is masked before anything else
happens to it, so what stands under a False mask (NaN, inf, garbage) reaches neither a
value nor a gradient. Values stay in fp32, or in fp64 when fp64 comes in.

A *unit* is what a level multiplies over: a row, or the run of a row that `starts_BT`
delimits (packed sequences, turns). Unit values are `[B, 1]` for whole rows and `[B, T]`
(each token holds the value of its unit) otherwise: both broadcast against `[B, T]`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.typing import Array

LOG_LIMIT = 20.0
"""Log-ratios are clamped to +-20 before exp: ratios stay in [2.1e-9, 4.9e8]."""


def as_float(x: ArrayLike) -> jax.Array:
  """`x` in fp32, or in fp64 when it is fp64 already."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def clamp_log(x: jax.Array, limit: float = LOG_LIMIT) -> jax.Array:
  """`x` clamped to `[-limit, limit]`, so that its exp is finite and not 0.

  >>> clamp_log(jnp.array([-100.0, 0.5, jnp.inf])).tolist()
  [-20.0, 0.5, 20.0]
  """
  return jnp.clip(x, -limit, limit)


def log_ratio(
  logp: ArrayLike,
  other_logp: ArrayLike,
  mask: Array,
  *,
  limit: float | None = LOG_LIMIT,
) -> jax.Array:
  """The log of `pi / pi_other` per token: `logp - other_logp`, 0 where masked.

  Args:
    logp: `[...]` log-probs in nats, any float dtype.
    other_logp: `[...]` log-probs in nats, any float dtype.
    mask: `[...]` bool or 0/1. What stands elsewhere is never read.
    limit: clamp each token to `[-limit, limit]`; None leaves it as it is.

  Returns:
    `[...]` fp32 log-ratios in nats.

  >>> log_ratio(jnp.array([-1.0, -2.0]), jnp.array([-1.5, jnp.nan]),
  ...           jnp.array([True, False])).tolist()
  [0.5, 0.0]
  """
  mask = mask != 0
  # The inputs are masked, not the difference: the gradient of a masked slot is then 0
  # even where it holds inf.
  logp = jnp.where(mask, as_float(logp), 0.0)
  other_logp = jnp.where(mask, as_float(other_logp), 0.0)
  difference = logp - other_logp
  return difference if limit is None else clamp_log(difference, limit)


def ratio(log_ratio: jax.Array, limit: float = LOG_LIMIT) -> jax.Array:
  """`exp(log_ratio)` with the log clamped to `[-limit, limit]`.

  >>> ratio(jnp.array([0.0, -50.0])).tolist()
  [1.0, 2.06115e-09]
  """
  return jnp.exp(clamp_log(log_ratio, limit))


def k1(log_ratio: jax.Array) -> jax.Array:
  """`-log rho`: unbiased for KL(sampler || learner) under the sampler, and signed.

  Source: Schulman, "Approximating KL divergence" (2020), for k1, k2 and k3.

  >>> k1(jnp.array([0.5])).tolist()
  [-0.5]
  """
  return -log_ratio


def k2(log_ratio: jax.Array) -> jax.Array:
  """`(log rho)^2 / 2`: biased for the KL, never negative.

  >>> k2(jnp.array([0.5])).tolist()
  [0.125]
  """
  return 0.5 * log_ratio * log_ratio


def k3(log_ratio: jax.Array) -> jax.Array:
  """`rho - 1 - log rho`: unbiased for KL(sampler || learner), never negative.

  Taken as `expm1(log rho) - log rho`: `exp(log rho) - 1 - log rho` would leave a
  log-ratio of 1e-3 one significant digit in fp32.

  >>> k3(jnp.array([0.5, 1e-3])).tolist()
  [0.148721, 5.0e-07]
  """
  return jnp.expm1(log_ratio) - log_ratio


def k3_reverse(log_ratio: jax.Array) -> jax.Array:
  """`rho log rho - rho + 1`: unbiased for KL(learner || sampler) under the sampler.

  >>> k3_reverse(jnp.array([0.5, 1e-3])).tolist()
  [0.175639, 5.0e-07]
  """
  expm1 = jnp.expm1(log_ratio)
  return expm1 * log_ratio - (expm1 - log_ratio)


DIVERGENCES = {"k1": k1, "k2": k2, "k3": k3}


def unit_starts(
  mask: jax.Array, segment_ids: jax.Array | None = None, *, turns: bool = False
) -> jax.Array:
  """Marks the first token of every segment, or of every turn.

  A segment is the run of tokens with equal `segment_ids`; a turn ends where the mask
  does (tool tokens) or where the segment does. Ids under a False mask are not read, so
  a hole may carry any id.

  Args:
    mask: `[B, T]` bool.
    segment_ids: `[B, T]` int, any values; equal ids that are neighbours (holes aside)
      are one segment.
    turns: also start a unit after every hole.

  Returns:
    `[B, T]` bool.

  >>> unit_starts(jnp.array([[1, 1, 0, 1, 1]]), jnp.array([[1, 1, 9, 1, 2]])).tolist()
  [[True, False, False, False, True]]
  >>> unit_starts(jnp.array([[1, 1, 0, 1, 1]]), turns=True).tolist()
  [[True, False, False, True, False]]
  """
  mask = mask != 0
  ids = jnp.zeros_like(mask, jnp.int32) if segment_ids is None else segment_ids
  last_id, seen = _last_flagged(ids, mask)
  starts = mask & ~(_shift(seen) & (_shift(last_id) == ids))
  return starts | (mask & ~_shift(mask)) if turns else starts


def unit_sum(x: jax.Array, starts: jax.Array | None = None) -> jax.Array:
  """The sum of `x` over each unit: `[B, 1]` for rows, `[B, T]` for marked units.

  >>> x = jnp.array([[1.0, 2.0, 3.0]])
  >>> unit_sum(x).tolist()
  [[6.0]]
  >>> unit_sum(x, jnp.array([[True, False, True]])).tolist()
  [[3.0, 3.0, 3.0]]
  """
  if starts is None:
    return x.sum(axis=1, keepdims=True)
  return _spread_last(_segmented_scan(jnp.add, x, starts), starts)


def unit_max(x: jax.Array, starts: jax.Array | None = None) -> jax.Array:
  """The largest `x` of each unit, shaped as `unit_sum` shapes it.

  >>> unit_max(jnp.array([[1.0, 3.0, 2.0]])).tolist()
  [[3.0]]
  """
  if starts is None:
    return x.max(axis=1, keepdims=True)
  return _spread_last(_segmented_scan(jnp.maximum, x, starts), starts)


def prefix_sum(x: jax.Array, starts: jax.Array | None = None) -> jax.Array:
  """The sum of `x` from the start of the unit up to and with each token: `[B, T]`.

  >>> prefix_sum(jnp.array([[1.0, 2.0, 3.0]])).tolist()
  [[1.0, 3.0, 6.0]]
  """
  if starts is None:
    return jnp.cumsum(x, axis=1)
  return _segmented_scan(jnp.add, x, starts)


def unit_mean(
  x: jax.Array, mask: jax.Array, starts: jax.Array | None = None
) -> jax.Array:
  """The mean of `x` over the True tokens of each unit; 0 for a unit with none.

  >>> unit_mean(jnp.array([[1.0, 0.0, 3.0]]), jnp.array([[1, 0, 1]])).tolist()
  [[2.0]]
  """
  mask = mask != 0
  count = unit_sum(mask.astype(x.dtype), starts)
  return unit_sum(jnp.where(mask, x, 0.0), starts) / jnp.maximum(count, 1.0)


def _shift(x_BT: jax.Array) -> jax.Array:
  """Each position's left neighbour; False or 0 in front."""
  return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)))


def _segmented_scan(op, x_BT: jax.Array, starts_BT: jax.Array) -> jax.Array:
  """An inclusive scan along T that begins anew at every start."""

  def combine(left, right):
    value_left, start_left = left
    value_right, start_right = right
    value = jnp.where(start_right, value_right, op(value_left, value_right))
    return value, start_left | start_right

  return jax.lax.associative_scan(combine, (x_BT, starts_BT), axis=1)[0]


def _last_flagged(x_BT, flag_BT, reverse=False):
  """The nearest flagged value at or before each position, and whether there is one."""

  def combine(left, right):
    value_left, flag_left = left
    value_right, flag_right = right
    return jnp.where(flag_right, value_right, value_left), flag_left | flag_right

  return jax.lax.associative_scan(combine, (x_BT, flag_BT), reverse=reverse, axis=1)


def _spread_last(x_BT: jax.Array, starts_BT: jax.Array) -> jax.Array:
  """Gives every token the value that stands at the end of its unit.

  Copied rather than recomputed, so that the tokens of a unit agree to the last bit.
  """
  ends_BT = jnp.pad(starts_BT[:, 1:], ((0, 0), (0, 1)), constant_values=True)
  return _last_flagged(x_BT, ends_BT, reverse=True)[0]
