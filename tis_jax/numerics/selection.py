"""Picking tokens by rank over a whole batch, in jit, on any mesh, without a sort.

A sort or `lax.top_k` over the flattened batch needs a static k and an unsharded axis.
Here the threshold is found bit by bit instead: fp32 numbers order like their bit
patterns, so 32 counts over the batch pin down the k-th largest exactly.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def top_k_mask(scores: ArrayLike, mask: ArrayLike, k: ArrayLike) -> jax.Array:
  """Marks the k largest scores under a mask, exactly k of them.

  Args:
    scores: `[B, T]`; what lies under a False mask, NaN included, is ignored.
    mask: `[B, T]` bool, the candidates.
    k: int32 scalar, traced or not. With fewer candidates all are marked.

  Returns:
    `[B, T]` bool. Of equal scores the earlier ones, in row order, are taken.

  >>> import jax.numpy as jnp
  >>> scores = jnp.array([[1.0, 5.0, 3.0], [5.0, jnp.nan, 9.0]])
  >>> mask = jnp.array([[True, True, True], [True, False, False]])
  >>> top_k_mask(scores, mask, 1).tolist()
  [[False, True, False], [False, False, False]]
  """
  scores, mask = jnp.asarray(scores), jnp.asarray(mask)
  k = jnp.minimum(jnp.asarray(k, jnp.int32), mask.sum(dtype=jnp.int32))
  rank = order_preserving_bits(jnp.where(mask, scores, 0.0))
  # The largest threshold that still leaves at least k candidates.
  threshold = largest(
    lambda t: (mask & (rank >= t)).sum(dtype=jnp.int32) >= k, jnp.uint32, bits=32
  )
  above = mask & (rank > threshold)
  tied = mask & (rank == threshold)
  missing = k - above.sum(dtype=jnp.int32)
  rows, columns = scores.shape
  position = jax.lax.broadcasted_iota(
    jnp.int32, scores.shape, 0
  ) * columns + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  end = largest(
    lambda e: (tied & (position < e)).sum(dtype=jnp.int32) <= missing,
    jnp.int32,
    bits=(rows * columns).bit_length(),
  )
  return above | (tied & (position < end))


def mean_at_most_mask(
  values: ArrayLike, mask: ArrayLike, bound: ArrayLike
) -> jax.Array:
  """Drops the largest values until the mean of the rest is at most `bound`.

  Args:
    values: `[B, T]`, non-negative under the mask; elsewhere ignored.
    mask: `[B, T]` bool, the candidates.
    bound: scalar.

  Returns:
    `[B, T]` bool, the candidates accepted. Equal values stay or go together.

  >>> import jax.numpy as jnp
  >>> mask = jnp.ones((1, 3), bool)
  >>> mean_at_most_mask(jnp.array([[1.0, 9.0, 2.0]]), mask, 2.0).tolist()
  [[True, False, True]]
  """
  mask = jnp.asarray(mask)
  values = jnp.where(mask, values, 0.0)
  rank = order_preserving_bits(values)

  def fits(threshold):
    accepted = mask & (rank <= threshold)
    total = jnp.where(accepted, values, 0.0).sum()
    return total <= bound * accepted.sum(dtype=jnp.float32)

  return mask & (rank <= largest(fits, jnp.uint32, bits=32))


def order_preserving_bits(x):
  """uint32 that compare as the fp32 numbers do, -0 and 0 alike.

  >>> bits = order_preserving_bits(jnp.array([-2.0, -0.0, 0.0, 3.0]))
  >>> (bits[:-1] <= bits[1:]).tolist(), (bits[:-1] == bits[1:]).tolist()
  ([True, True, True], [False, True, False])
  """
  x = jnp.where(x == 0, 0.0, x)
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits & sign, ~bits, bits | sign)


def largest(holds, dtype, bits, shape=()):
  """The largest numbers of so many bits for which a falling predicate still holds.

  Args:
    holds: of an array of numbers, `shape`, one answer each; true up to some number.
    dtype: uint32 or int32.
    bits: how many are looked for, one call of `holds` each.
    shape: of the result.

  Returns:
    `shape`; 0 where it holds nowhere.

  >>> largest(lambda x: x * x <= jnp.array([10, 99]), jnp.int32, bits=8, shape=(2,))
  Array([3, 9], dtype=int32)
  """

  def set_bit(i, number):
    candidate = number | jax.lax.shift_left(
      jnp.ones((), dtype), jnp.asarray(bits - 1 - i, dtype)
    )
    return jnp.where(holds(candidate), candidate, number)

  return jax.lax.fori_loop(0, bits, set_bit, jnp.zeros(shape, dtype))
