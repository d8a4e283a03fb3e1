"""The array type that signatures share, and the precision of everything."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array | np.ndarray
"""On the device or on the host: what numpy made is taken as it is."""


def as_array(name: str, x: Any) -> Array:
  """An array from what users hold: JAX's, numpy's, PyTorch's, or nested lists.

  Raises:
    TypeError: what is no array of numbers.
    ValueError: lists of different lengths, with what to write.

  >>> as_array("mask", [[1, 0]]).shape
  (1, 2)
  """
  if isinstance(x, (jax.Array, np.ndarray)):
    return x
  if type(x).__module__.partition(".")[0] == "torch":
    x = x.detach().cpu()
    # numpy has no bfloat16.
    return (x.float() if x.is_floating_point() else x).numpy()
  try:
    array = np.asarray(x)
  except ValueError as error:
    raise ValueError(
      f"{name} has rows of different lengths; write tis.pad_ragged({name}), which gives"
      " the padded array and its mask"
    ) from error
  if array.dtype.kind not in "biuf":
    raise TypeError(f"{name} must be an array of numbers, got {type(x).__name__}")
  return array


def pad_ragged(rows: Sequence, fill: float = 0) -> tuple[np.ndarray, np.ndarray]:
  """Rows of different lengths as one padded array, and which of it is theirs.

  Args:
    rows: B sequences of numbers, such as lists of log-probs.
    fill: stands behind the end of a row.

  Returns:
    `(array, mask)`: `[B, T]` with T the longest row, in the numbers' own type (fp32 for
    Python floats), and bool `[B, T]`.

  >>> array, mask = pad_ragged([[-0.5, -1.0], [-2.0]])
  >>> array.tolist(), mask.tolist()
  ([[-0.5, -1.0], [-2.0, 0.0]], [[True, True], [True, False]])
  """
  parts = [np.asarray(row) for row in rows]
  width = max((len(part) for part in parts), default=0)
  dtype = np.result_type(*parts) if parts else np.float32
  dtype = np.float32 if dtype == np.float64 else dtype
  array = np.full((len(parts), width), fill, dtype)
  mask = np.arange(width) < np.array([len(part) for part in parts])[:, None]
  for row, part in zip(array, parts, strict=True):
    row[: len(part)] = part
  return array, mask


def as_float(x: ArrayLike) -> jax.Array:
  """`x` in fp32, or in fp64 when it is fp64 already."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(jnp.float32, x.dtype))
