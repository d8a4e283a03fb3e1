"""What every public function does at the door: check, and say what is wrong.

Shapes, dtypes and words are known while a function is traced, so they are always
checked. A number is checked where it has a value; a traced one passes.
"""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.numerics.arrays import as_float


def check_choice(name: str, value: Any, choices: Collection) -> None:
  """Refuses a word that is not among `choices`.

  >>> check_choice("level", "word", ("token", "sequence"))
  Traceback (most recent call last):
  ValueError: level must be one of 'token', 'sequence', got 'word'
  """
  if value not in choices:
    shown = ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be one of {shown}, got {value!r}")


def check_number(
  name: str,
  value: Any,
  *,
  above: float | None = None,
  at_least: float | None = None,
  below: float | None = None,
  at_most: float | None = None,
) -> None:
  """Refuses what is no number, NaN, or outside its limits; traced values pass.

  >>> check_number("clip_low", -0.1, at_least=0, at_most=1)
  Traceback (most recent call last):
  ValueError: clip_low must be at least 0 and at most 1, got -0.1
  """
  if isinstance(value, jax.core.Tracer):
    return
  if isinstance(value, (bool, str, bytes)) or value is None:
    raise TypeError(f"{name} must be a number, got {value!r}")
  if np.ndim(value) != 0:
    raise ValueError(f"{name} must be a scalar; use vmap for a sweep")
  number = float(value)
  limits = {
    "above": (above, lambda limit: number > limit),
    "at least": (at_least, lambda limit: number >= limit),
    "below": (below, lambda limit: number < limit),
    "at most": (at_most, lambda limit: number <= limit),
  }
  given = {word: limit for word, (limit, _) in limits.items() if limit is not None}
  if math.isnan(number) or not all(limits[word][1](given[word]) for word in given):
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in given.items())
    raise ValueError(f"{name} must be {wanted or 'a number'}, got {value!r}")


def check_order(name: str, low: Any, high: Any) -> None:
  """Refuses a band that nothing can lie in."""
  if not any(isinstance(v, jax.core.Tracer) for v in (low, high)) and low > high:
    raise ValueError(f"{name}: low={low!r} is above high={high!r}, so nothing passes")


def check_band(name: str, low: Any, high: Any) -> None:
  """Refuses a band of ratios with a negative bound, or with the bounds out of order."""
  check_number(f"{name}: high", high, above=0)
  check_number(f"{name}: low", low, at_least=0)
  check_order(name, low, high)


def check_shape(name: str, value: Any, *shapes: tuple[int, ...]) -> None:
  """Refuses an array that has none of `shapes`."""
  if jnp.shape(value) not in map(tuple, shapes):
    wanted = " or ".join(str(tuple(shape)) for shape in shapes)
    raise ValueError(f"{name} must have shape {wanted}, got {jnp.shape(value)}")


def check_rank(name: str, value: Any, axes: str) -> None:
  """Refuses an array that has not one axis for each letter of `axes`.

  >>> check_rank("rewards", jnp.ones((2, 3)), "B")
  Traceback (most recent call last):
  ValueError: rewards must be [B], got shape (2, 3)
  """
  if jnp.ndim(value) != len(axes):
    wanted = ", ".join(axes)
    raise ValueError(f"{name} must be [{wanted}], got shape {jnp.shape(value)}")


def as_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> jax.Array:
  """A bool mask of `shape` from a bool or 0/1 array of any dtype; None is all True."""
  if mask is None:
    return jnp.ones(shape, bool)
  check_shape(name, mask, shape)
  return jnp.asarray(mask) != 0


def as_floats(name: str, value: Any) -> jax.Array:
  """`value` in fp32 (fp64 stays); refuses integers, which are ids or a mistake."""
  value = jnp.asarray(value)
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating point, got {value.dtype}")
  return as_float(value)


def per_token(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
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


def as_group_ids(group_ids: Any, rows: int) -> jax.Array:
  """The ids as an array; refuses any that are not one integer a row."""
  return _ids("group_ids", group_ids, "[B]", (rows,))


def as_segment_ids(segment_ids: Any, shape: tuple[int, ...]) -> jax.Array | None:
  """The ids as an array, or None; refuses any that are not one integer a token."""
  if segment_ids is None:
    return None
  return _ids("segment_ids", segment_ids, "[B, T]", tuple(shape))


def _ids(name, value, axes, shape):
  value = jnp.asarray(value)
  if value.shape != shape or not jnp.issubdtype(value.dtype, jnp.integer):
    raise ValueError(
      f"{name} must be {axes} = {shape} integers, got {value.dtype}{list(value.shape)}"
    )
  return value
