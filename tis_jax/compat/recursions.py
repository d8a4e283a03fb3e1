"""Backward recursions along the tokens, as the peers run them: over every column."""

import jax
import jax.numpy as jnp

from tis_jax.compat.arrays import Array, masked_mean


def backward(step, carry, *arrays_BT: Array) -> Array:
  """`carry, y_t = step(carry, *columns_t)` from the last column to the first.

  >>> step = lambda total, x: (total + x, total + x)
  >>> backward(step, jnp.zeros(1), jnp.array([[1.0, 2.0, 3.0]])).tolist()
  [[6.0, 5.0, 3.0]]
  """
  columns = tuple(x.T for x in arrays_BT)
  return jax.lax.scan(
    lambda carry, column: step(carry, *column), carry, columns, reverse=True
  )[1].T


def whiten_all(x_BT: Array, valid_BT: Array) -> Array:
  """Whitens by the masked mean and unbiased variance, every position alike."""
  count = valid_BT.sum(dtype=jnp.float32)
  mean = masked_mean(x_BT, valid_BT)
  square = masked_mean((x_BT - mean) ** 2, valid_BT)
  variance = square * count / jnp.maximum(count - 1, 1.0)
  return (x_BT - mean) * jax.lax.rsqrt(variance + 1e-8)
