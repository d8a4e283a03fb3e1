"""What every loss does at the door: check shapes, clean under the mask, go to fp32."""

import jax
import jax.numpy as jnp

# exp(20) is 4.9e8: far beyond any ratio that trains, far below fp32's overflow.
LOG_RATIO_BOUND = 20.0


def prepare(mask, advantages, /, **log_probs):
  """Checks a loss's arrays and makes what lies under the mask inert.

  Cleaning the inputs, rather than the outputs, keeps the gradient clean as well: the
  derivative of `where(mask, f(x), 0)` at a masked NaN is NaN, not 0.

  Returns:
    `(mask, advantages, *log_probs)`, all `[B, T]`; the mask bool, the rest fp32 and 0
    where the mask is False. `advantages` is None when None was given.
  """
  (first_name, first), *_ = log_probs.items()
  if jnp.ndim(first) != 2:
    raise ValueError(f"{first_name} must be [B, T], got shape {jnp.shape(first)}")
  shape = jnp.shape(first)
  mask = as_mask(mask, shape)
  clean = []
  for name, value in log_probs.items():
    require_shape(name, value, shape, first_name)
    clean.append(jnp.where(mask, as_fp32(name, value), 0.0))
  if advantages is not None:
    advantages = jnp.where(mask, per_token("advantages", advantages, shape), 0.0)
  return mask, advantages, *clean


def as_mask(mask, shape, name="mask"):
  """A bool mask of `shape` from a bool or 0/1 array of any dtype; None is all True."""
  if mask is None:
    return jnp.ones(shape, bool)
  if jnp.shape(mask) != tuple(shape):
    raise ValueError(f"{name} must have shape {tuple(shape)}, got {jnp.shape(mask)}")
  return jnp.asarray(mask) != 0


def as_fp32(name, value):
  value = jnp.asarray(value)
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating point, got {value.dtype}")
  return value.astype(jnp.float32)


def per_token(name, value, shape):
  """`[B, T]` fp32 from a `[B, T]` array or one number a sequence, `[B]`."""
  value = as_fp32(name, value)
  if value.shape == tuple(shape[:1]):
    value = jnp.broadcast_to(value[:, None], shape)
  if value.shape != tuple(shape):
    raise ValueError(
      f"{name} must be [B, T] = {tuple(shape)} or [B] = ({shape[0]},), "
      f"got {value.shape}"
    )
  return value


def require_shape(name, value, shape, like):
  if jnp.shape(value) != tuple(shape):
    raise ValueError(
      f"{name} must have the shape of {like}, {tuple(shape)}, got {jnp.shape(value)}"
    )


def clamped_log_ratio(logp, anchor_logp):
  """`logp - anchor_logp` in +-20, so that its exp neither overflows nor is NaN."""
  return jnp.clip(logp - anchor_logp, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def check_clip(clip_low, clip_high):
  """Refuses a clip range that holds no ratio; traced bounds are taken on trust."""
  check_at_least("clip_low", clip_low, 0.0)
  check_at_least("clip_high", clip_high, 0.0)


def check_at_least(name, value, bound, *, strict=False):
  if isinstance(value, jax.core.Tracer) or value is None:
    return
  if value < bound or (strict and value == bound):
    raise ValueError(
      f"{name} must be {'above' if strict else 'at least'} {bound}, got {value}"
    )
