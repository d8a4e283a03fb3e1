"""The few array primitives that the peers share.

A peer multiplies by the mask, so NaN in the padding leaks; here a `where` comes first.
On finite numbers the results are the same.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
# What `correction` returns; its result is (weight or None, mask, metrics).
Correct = Callable[..., tuple[Array | None, Array, dict[str, Array]]]


def prepare(
  old_logp: Array, sampler_logp: Array, mask: Array
) -> tuple[Array, Array, Array]:
  """Constants in fp32 without garbage under the mask: old, sampler, and a bool mask.

  Positions outside the mask keep their value where it is finite, because some peers
  compute weights there; they read 0 where it is not.

  Raises:
    ValueError: the three arrays differ in shape, or are not `[B, T]`.
  """
  shapes = [jnp.shape(x) for x in (old_logp, sampler_logp, mask)]
  if len(set(shapes)) > 1 or len(shapes[0]) != 2:
    raise ValueError(
      "old_logp, sampler_logp and mask must be [B, T] of one shape; got "
      + ", ".join(map(str, shapes))
    )
  mask = jnp.asarray(mask) != 0
  fp32 = lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32))
  old_logp, sampler_logp = fp32(old_logp), fp32(sampler_logp)
  keep = mask | (jnp.isfinite(old_logp) & jnp.isfinite(sampler_logp))
  return jnp.where(keep, old_logp, 0.0), jnp.where(keep, sampler_logp, 0.0), mask


def constant(x: Array, mask: Array) -> Array:
  """`x` in fp32, without gradient, 0 outside the mask."""
  return jax.lax.stop_gradient(jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0))


def finite_outside(x: Array, mask: Array) -> Array:
  """`x` in fp32, 0 where it is neither finite nor in the mask.

  For what a peer reads outside the mask: its numbers stay, garbage goes.
  """
  x = jnp.asarray(x, jnp.float32)
  return jnp.where(mask | jnp.isfinite(x), x, 0.0)


def masked_sum(x: Array, mask: Array, axis: int | None = None) -> Array:
  """The sum of `x` where `mask` is True."""
  return jnp.where(mask, x, 0.0).sum(axis)


def masked_mean(x: Array, mask: Array, axis: int | None = None) -> Array:
  """The mean of `x` where `mask` is True; 0 where nothing is.

  >>> masked_mean(jnp.array([[1.0, 3.0], [5.0, 7.0]]), jnp.array([[1, 1], [0, 0]]), 1)
  Array([2., 0.], dtype=float32)
  """
  count = (mask != 0).sum(axis, dtype=jnp.float32)
  return masked_sum(x, mask != 0, axis) / jnp.maximum(count, 1.0)


def masked_max(x: Array, mask: Array) -> Array:
  """The largest `x` where `mask` is True; 0 where nothing is."""
  return jnp.where(mask.any(), jnp.where(mask, x, -jnp.inf).max(), 0.0)


def masked_min(x: Array, mask: Array) -> Array:
  """The smallest `x` where `mask` is True; 0 where nothing is."""
  return -masked_max(-x, mask)


def quotient(before: Array, after: Array) -> Array:
  """The number that `before` was divided by to give `after`; 1 if both are 0.

  >>> quotient(jnp.array([1.0, 3.0]), jnp.array([0.5, 1.5]))
  Array(2., dtype=float32)
  """
  total = after.sum()
  return jnp.where(total == 0, 1.0, before.sum() / jnp.where(total == 0, 1.0, total))


def row_std(x: Array) -> Array:
  """The unbiased standard deviation of a vector; 0 of a single number.

  >>> row_std(jnp.array([1.0, 3.0])), row_std(jnp.array([1.0]))
  (Array(1.4142135, dtype=float32), Array(0., dtype=float32))
  """
  return x.std(ddof=1) if x.size > 1 else jnp.zeros((), x.dtype)


def log(x: float) -> float:
  """`log(x)` on the host, `-inf` at 0."""
  return math.log(x) if x > 0 else -math.inf
