"""Sums over the sequences of a batch: one a row, or several packed into a row."""

import jax.numpy as jnp

from tis_jax.corrections.ratios import unit_starts, unit_sum


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


def as_segment_ids(segment_ids, shape):
  """The ids as an array, or None; refuses any that are not one integer a token."""
  if segment_ids is None:
    return None
  segment_ids = jnp.asarray(segment_ids)
  integers = jnp.issubdtype(segment_ids.dtype, jnp.integer)
  if segment_ids.shape != tuple(shape) or not integers:
    raise ValueError(
      f"segment_ids must be [B, T] = {tuple(shape)} integers, "
      f"got {segment_ids.dtype}{list(segment_ids.shape)}"
    )
  return segment_ids
