"""What every policy loss does at the door: check shapes, clean under the mask."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.numerics.checks import (
  as_floats,
  as_mask,
  check_number,
  check_rank,
  check_shape,
  per_token,
)
from tis_jax.numerics.ratios import clamp_log, difference


def clean(mask: ArrayLike | None, /, **arrays: ArrayLike) -> tuple[jax.Array, ...]:
  """Checks `[B, T]` arrays and makes what lies under the mask inert.

  Cleaning the inputs, rather than the outputs, keeps the gradient clean as well: the
  derivative of `where(mask, f(x), 0)` at a masked NaN is NaN, not 0.

  Returns:
    `(mask, *arrays)`, all `[B, T]`; the mask bool, the rest fp32 and 0 where the mask
    is False.
  """
  (first_name, first), *_ = arrays.items()
  check_rank(first_name, first, "BT")
  shape = jnp.shape(first)
  mask = as_mask(mask, shape)
  for name, value in arrays.items():
    check_shape(name, value, shape)
  return mask, *(
    jnp.where(mask, as_floats(name, value), 0.0) for name, value in arrays.items()
  )


def policy_inputs(
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
  """`logp - anchor_logp` in +-20, of tokens that are exponentiated one by one."""
  return clamp_log(difference(logp, anchor_logp))


def check_clip(clip_low, clip_high):
  """Refuses a clip range that holds no ratio."""
  check_number("clip_low", clip_low, at_least=0)
  check_number("clip_high", clip_high, at_least=0)
