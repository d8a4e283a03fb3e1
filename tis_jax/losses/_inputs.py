"""What every policy loss does at the door: check shapes, clean under the mask."""

import jax.numpy as jnp

from tis_jax.advantages._inputs import (
  as_floats,
  as_mask,
  per_token,
  require_at_least,
  require_shape,
)
from tis_jax.corrections.ratios import clamp_log


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
    require_shape(name, value, shape)
    clean.append(jnp.where(mask, as_floats(name, value), 0.0))
  if advantages is not None:
    advantages = jnp.where(mask, per_token("advantages", advantages, shape), 0.0)
  return mask, advantages, *clean


def clamped_log_ratio(logp, anchor_logp):
  """`logp - anchor_logp` in +-20, of arrays that `prepare` has cleaned."""
  return clamp_log(logp - anchor_logp)


def require_clip(clip_low, clip_high):
  """Refuses a clip range that holds no ratio."""
  require_at_least("clip_low", clip_low, 0.0)
  require_at_least("clip_high", clip_high, 0.0)
