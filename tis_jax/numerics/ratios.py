"""Ratios of two policies' token log-probs, token by token.

Everything here takes and returns arrays. A log-ratio is masked before anything else
happens to it, so what stands under a False mask (NaN, inf, garbage) reaches neither a
value nor a gradient. Values stay in fp32, or in fp64 when fp64 comes in.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.numerics.arrays import Array, as_float

LOG_LIMIT = 20.0
"""Log-ratios are clamped to +-20 before exp: ratios stay in [2.1e-9, 4.9e8]."""

_LARGEST = 1e4


def clamp_log(x: jax.Array, limit: float = LOG_LIMIT) -> jax.Array:
  """`x` clamped to `[-limit, limit]`, so that its exp is finite and not 0.

  >>> clamp_log(jnp.array([-100.0, 0.5, jnp.inf])).tolist()
  [-20.0, 0.5, 20.0]
  """
  return jnp.clip(x, -limit, limit)


def difference(logp: ArrayLike, other_logp: ArrayLike) -> jax.Array:
  """`logp - other_logp` of tokens that are not masked; an infinite one is +-1e4.

  Not clamped further: one token's -30 and another's +30 cancel in a sum, and only what
  is exponentiated needs a bound. Sums of these stay numbers.

  >>> difference(jnp.array([-1.0, -jnp.inf]), jnp.array([-1.5, -1.0])).tolist()
  [0.5, -10000.0]
  """
  return jnp.clip(as_float(logp) - as_float(other_logp), -_LARGEST, _LARGEST)


def log_ratio(logp: ArrayLike, other_logp: ArrayLike, mask: Array) -> jax.Array:
  """The log of `pi / pi_other` per token: `logp - other_logp`, 0 where masked.

  Args:
    logp: `[...]` log-probs in nats, any float dtype.
    other_logp: `[...]` log-probs in nats, any float dtype.
    mask: `[...]` bool or 0/1. What stands elsewhere is never read.

  Returns:
    `[...]` fp32 log-ratios in nats, not clamped; see `difference`.

  >>> log_ratio(jnp.array([-1.0, -2.0]), jnp.array([-1.5, jnp.nan]),
  ...           jnp.array([True, False])).tolist()
  [0.5, 0.0]
  """
  mask = mask != 0
  # The inputs are masked, not the difference: the gradient of a masked slot is then 0
  # even where it holds inf.
  logp = jnp.where(mask, as_float(logp), 0.0)
  return difference(logp, jnp.where(mask, as_float(other_logp), 0.0))


def ratio(log_ratio: jax.Array, limit: float = LOG_LIMIT) -> jax.Array:
  """`exp(log_ratio)` with the log clamped to `[-limit, limit]`.

  >>> ratio(jnp.array([0.0, -50.0])).tolist()
  [1.0, 2.06115e-09]
  """
  return jnp.exp(clamp_log(log_ratio, limit))


def magnitude(x: jax.Array) -> jax.Array:
  """`|x|`, with the gradient 0 at 0, where every token is before its first update.

  JAX's own takes 1 there, and pushes all tokens of an unchanged policy one way.

  >>> jax.grad(magnitude)(0.0).item(), jax.grad(magnitude)(-2.0).item()
  (0.0, -1.0)
  """
  return x * jnp.sign(jax.lax.stop_gradient(x))


def clip_within(x: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
  """`x` clipped to `[low, high]`, with the gradient 1 on the bounds themselves.

  A bound is part of its range. JAX's own takes 1/2 there, which halves the first update
  under a range that ends at the ratio 1.

  >>> jax.grad(clip_within)(1.0, 1.0, 1.2), jax.grad(clip_within)(1.3, 1.0, 1.2)
  (Array(1., ...), Array(0., ...))
  """
  inside = (low <= x) & (x <= high)
  return jnp.where(inside, x, jax.lax.stop_gradient(jnp.clip(x, low, high)))


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


def exp_abs(log_ratio: jax.Array) -> jax.Array:
  """`exp(|log rho|)`: the factor by which the ratio is off, whichever way.

  >>> exp_abs(jnp.log(jnp.array([0.5, 2.0]))).tolist()
  [2.0, 2.0]
  """
  return jnp.exp(jnp.abs(log_ratio))


DIVERGENCES = {"k1": k1, "k2": k2, "k3": k3, "exp_abs": exp_abs}


def log_bound(value: Any) -> Any:
  """The log of a bound on a ratio; -inf for 0.

  Of a plain number it is taken in fp64: as an fp32 number 1.0001 has a log that is off
  by 1e-4 of the band's width.

  >>> log_bound(1.0), log_bound(0)
  (0.0, -inf)
  """
  if isinstance(value, (jax.core.Tracer, jax.Array)):
    return jnp.log(as_float(value))
  return math.log(value) if value > 0 else -math.inf
