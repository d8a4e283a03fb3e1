"""Sums over the sequences of a batch: one a row, or several packed into a row."""

import jax
import jax.numpy as jnp


def sequence_sum(x, mask, segment_ids=None):
  """Each token gets the sum over its own sequence, `[B, T]`.

  `mask` must be bool and `x` 0 where it is False. With `segment_ids` (`[B, T]`
  integers) a sequence is a run of equal ids, as packed rows have them.
  """
  x = jnp.where(mask, x, 0.0)
  if segment_ids is None:
    return jnp.broadcast_to(x.sum(-1, keepdims=True), x.shape)
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  edge = jnp.ones_like(segment_ids[:, :1], bool)
  # Up to and including the token, plus from it on, less the token itself. Running sums
  # that restart at a boundary, rather than a difference of two plain cumulative sums,
  # keep the rounding errors of one sequence out of the next.
  before = _restarting_sum(x, jnp.concatenate([edge, changed], 1), reverse=False)
  after = _restarting_sum(x, jnp.concatenate([changed, edge], 1), reverse=True)
  return before + after - x


def sequence_mean(x, mask, segment_ids=None):
  """Each token gets the mean over the masked tokens of its sequence; 0 if none is."""
  return sequence_sum(x, mask, segment_ids) / sequence_length(mask, segment_ids)


def sequence_length(mask, segment_ids=None):
  """`[B, T]` fp32: how many masked tokens each token's sequence has, at least 1."""
  count = sequence_sum(jnp.ones(mask.shape, jnp.float32), mask, segment_ids)
  return jnp.maximum(count, 1.0)


def check_segment_ids(segment_ids, shape):
  if segment_ids is None:
    return None
  segment_ids = jnp.asarray(segment_ids)
  if segment_ids.shape != tuple(shape) or not jnp.issubdtype(
    segment_ids.dtype, jnp.integer
  ):
    raise ValueError(
      f"segment_ids must be [B, T] = {tuple(shape)} integers, "
      f"got {segment_ids.dtype}{list(segment_ids.shape)}"
    )
  return segment_ids


def _restarting_sum(x, restart, reverse):
  def combine(left, right):
    left_sum, left_restart = left
    right_sum, right_restart = right
    total = jnp.where(right_restart, right_sum, left_sum + right_sum)
    return total, left_restart | right_restart

  return jax.lax.associative_scan(combine, (x, restart), reverse=reverse, axis=1)[0]
