"""What estimators and losses do at the door: check arrays, clean masks, go to fp32."""

import jax.numpy as jnp
from jax.core import Tracer

from tis_jax.advantages.groups import check_group_ids
from tis_jax.corrections.ratios import as_float

SINGLETONS = ("zero", "raw")


def as_mask(mask, shape, name="mask"):
  """A bool mask of `shape` from a bool or 0/1 array of any dtype; None is all True."""
  if mask is None:
    return jnp.ones(shape, bool)
  require_shape(name, mask, shape)
  return jnp.asarray(mask) != 0


def as_floats(name, value):
  """`value` in fp32 (fp64 stays); refuses integers, which are ids or a mistake."""
  value = jnp.asarray(value)
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating point, got {value.dtype}")
  return as_float(value)


def per_token(name, value, shape):
  """`[B, T]` from a `[B, T]` array or from one number a sequence, `[B]`."""
  value = as_floats(name, value)
  if value.shape == tuple(shape[:1]):
    value = jnp.broadcast_to(value[:, None], shape)
  if value.shape != tuple(shape):
    raise ValueError(
      f"{name} must be [B, T] = {tuple(shape)} or [B] = ({shape[0]},), "
      f"got {value.shape}"
    )
  return value


def require_shape(name, value, shape):
  if jnp.shape(value) != tuple(shape):
    raise ValueError(f"{name} must have shape {tuple(shape)}, got {jnp.shape(value)}")


def require_at_least(name, value, bound, *, strict=False):
  """Refuses NaN and what is below the bound; None and tracers are taken on trust."""
  if value is None or isinstance(value, Tracer):
    return
  if not (value > bound if strict else value >= bound):
    word = "above" if strict else "at least"
    raise ValueError(f"{name} must be {word} {bound}, got {value}")


def prepare(rewards, group_ids, baseline_mask, singleton):
  """Checks a group estimator's arrays: `(fp32 rewards, rows the baseline keeps)`."""
  rewards = jnp.asarray(rewards)
  if rewards.ndim != 1:
    raise ValueError(f"rewards must be [B], got shape {rewards.shape}")
  check_group_ids(group_ids, rewards.shape[0])
  if rewards.shape[0] == 1:
    raise ValueError(
      "a group baseline needs at least two rows and the batch has one: "
      "sample more answers a prompt, or subtract a baseline of your own"
    )
  if singleton not in SINGLETONS:
    raise ValueError(f"singleton must be one of {SINGLETONS}, got {singleton!r}")
  return as_float(rewards), as_mask(baseline_mask, rewards.shape, "baseline_mask")


def centre(rewards, baseline, kept):
  """`rewards - baseline`; a row left out of the baseline may be NaN and gives 0."""
  return jnp.where(kept | jnp.isfinite(rewards), rewards - baseline, 0.0)


def alone(advantage, rewards, count, kept, singleton):
  """What a row with nothing to compare with gets in the place of `advantage`."""
  if singleton == "raw":
    lonely = jnp.where(kept | jnp.isfinite(rewards), rewards, 0.0)
  else:
    lonely = jnp.zeros_like(rewards)
  return jnp.where(count > 1, advantage, lonely)
