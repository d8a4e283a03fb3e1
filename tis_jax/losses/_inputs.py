"""What every policy loss does at the door: check shapes, clean under the mask."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.advantages._inputs import (
  as_floats,
  as_mask,
  per_token,
  require_at_least,
  require_shape,
)
from tis_jax.corrections.ratios import clamp_log


def clean(mask: ArrayLike | None, /, **arrays: ArrayLike) -> tuple[jax.Array, ...]:
  """Checks `[B, T]` arrays and makes what lies under the mask inert.

  Cleaning the inputs, rather than the outputs, keeps the gradient clean as well: the
  derivative of `where(mask, f(x), 0)` at a masked NaN is NaN, not 0.

  Returns:
    `(mask, *arrays)`, all `[B, T]`; the mask bool, the rest fp32 and 0 where the mask
    is False.
  """
  (first_name, first), *_ = arrays.items()
  if jnp.ndim(first) != 2:
    raise ValueError(f"{first_name} must be [B, T], got shape {jnp.shape(first)}")
  shape = jnp.shape(first)
  mask = as_mask(mask, shape)
  for name, value in arrays.items():
    require_shape(name, value, shape)
  return mask, *(
    jnp.where(mask, as_floats(name, value), 0.0) for name, value in arrays.items()
  )


def prepare(
  mask: ArrayLike | None, advantages: ArrayLike, /, **log_probs: ArrayLike
) -> tuple[jax.Array, ...]:
  """`clean`, with advantages of one number a token or a sequence.

  Returns:
    `(mask, advantages, *log_probs)`, all `[B, T]`.
  """
  mask, *log_probs_BT = clean(mask, **log_probs)
  advantages = per_token("advantages", advantages, mask.shape)
  return mask, jnp.where(mask, advantages, 0.0), *log_probs_BT


def clamped_log_ratio(logp: jax.Array, anchor_logp: jax.Array) -> jax.Array:
  """`logp - anchor_logp` in +-20, of arrays that `clean` has cleaned."""
  return clamp_log(logp - anchor_logp)


def require_clip(clip_low, clip_high):
  """Refuses a clip range that holds no ratio."""
  require_at_least("clip_low", clip_low, 0.0)
  require_at_least("clip_high", clip_high, 0.0)
