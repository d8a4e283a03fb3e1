"""Sums over the units of a row: whole rows, packed segments, turns.

A *unit* is what a level multiplies over: a row, or the run of a row that `starts`
delimits (packed sequences, turns). Unit values are `[B, 1]` for whole rows and `[B, T]`
(each token holds the value of its unit) otherwise: both broadcast against `[B, T]`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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


def turn_ids(mask: ArrayLike) -> jax.Array:
  """Which turn of its row each token is of, counted from 0; -1 where the mask is False.

  Args:
    mask: `[B, T]` bool, the tokens that were sampled: a turn ends where the mask does.

  Returns:
    `[B, T]` int32.

  >>> turn_ids(jnp.array([[True, True, False, True, False]])).tolist()
  [[0, 0, -1, 1, -1]]
  """
  mask = jnp.asarray(mask) != 0
  starts = unit_starts(mask, turns=True)
  return jnp.where(mask, jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1, -1)


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


def min_before(x: jax.Array, starts: jax.Array | None = None) -> jax.Array:
  """The smallest `x` of the unit before each token, inf where there is none: `[B, T]`.

  >>> min_before(jnp.array([[2.0, 1.0, 3.0]])).tolist()
  [[inf, 2.0, 1.0]]
  >>> starts = jnp.array([[True, False, True, False]])
  >>> min_before(jnp.array([[2.0, 1.0, 3.0, 0.0]]), starts).tolist()
  [[inf, 2.0, inf, 3.0]]
  """
  before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=jnp.inf)
  if starts is None:
    return jax.lax.cummin(before, axis=1)
  return _segmented_scan(jnp.minimum, jnp.where(starts, jnp.inf, before), starts)


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


def sequence_sum(x, mask, segment_ids=None):
  """Each token gets the sum over the masked tokens of its sequence, `[B, T]`.

  With `segment_ids` (`[B, T]` integers) a sequence is a run of equal ids, as packed
  rows have them.
  """
  starts = None if segment_ids is None else unit_starts(mask, segment_ids)
  return jnp.broadcast_to(unit_sum(jnp.where(mask, x, 0.0), starts), x.shape)


def sequence_mean(x, mask, segment_ids=None):
  """Each token gets the mean over the masked tokens of its sequence; 0 if none is."""
  return sequence_sum(x, mask, segment_ids) / sequence_length(mask, segment_ids)


def sequence_length(mask, segment_ids=None):
  """`[B, T]` fp32: how many masked tokens each token's sequence has, at least 1."""
  count = sequence_sum(jnp.ones(mask.shape, jnp.float32), mask, segment_ids)
  return jnp.maximum(count, 1.0)


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
