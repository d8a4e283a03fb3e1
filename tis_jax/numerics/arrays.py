"""The array type that signatures share, and the precision of everything."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array | np.ndarray
"""On the device or on the host: what numpy made is taken as it is."""


def as_float(x: ArrayLike) -> jax.Array:
  """`x` in fp32, or in fp64 when it is fp64 already."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(jnp.float32, x.dtype))
