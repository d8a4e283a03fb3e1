"""Keys and values of the tokens that slots have seen, a layer at a time.

Letters in names: B slots, C places of a slot, N key heads, K head width, S new tokens.
Heads stand before places, so that a head's places lie beside each other; keys have the
places last, which is how a query meets them: on a CPU that is up to four times faster.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.models.config import DecoderConfig

_LEAST = 128
_STEP = 8


class Memory(NamedTuple):
  """Keys and values of one layer.

  Attributes:
    keys_BNKC: in the cache's dtype.
    values_BNCK: likewise.
    key_scale_BNC: fp32, what whole numbers are multiplied by; None of floats.
    value_scale_BNC: likewise.
  """

  keys_BNKC: jax.Array
  values_BNCK: jax.Array
  key_scale_BNC: jax.Array | None = None
  value_scale_BNC: jax.Array | None = None


def capacities(longest: int) -> tuple[int, ...]:
  """How many places slots may have: `longest`, and halves of it, down to 128.

  A cache is only as wide as its longest slot needs, and each width is compiled once.

  >>> capacities(13), capacities(320), capacities(2048)
  ((16,), (160, 320), (128, 256, 512, 1024, 2048))
  """
  sizes = [-(-longest // _STEP) * _STEP]
  while (half := -(-sizes[0] // 2 // _STEP) * _STEP) >= _LEAST:
    sizes.insert(0, half)
  return tuple(sizes)


def covering(sizes: tuple[int, ...], places: int) -> int:
  """The least of `sizes`, in order, that has so many places; else the largest."""
  return next((size for size in sizes if size >= places), sizes[-1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(config: DecoderConfig, slots: int, places: int, dtype) -> tuple[Memory, ...]:
  """A cache for every layer.

  Args:
    config: shapes.
    slots: B.
    places: C.
    dtype: of floats, or int8.
  """
  heads, width = (slots, config.num_kv_heads), config.head_dim

  def one() -> Memory:
    scales = 2 * (jnp.zeros((*heads, places)),) if dtype == jnp.int8 else ()
    keys = jnp.zeros((*heads, width, places), dtype)
    return Memory(keys, jnp.zeros((*heads, places, width), dtype), *scales)

  return tuple(one() for _ in range(config.num_layers))


def places_of(memory: Memory) -> int:
  """C."""
  return memory.values_BNCK.shape[2]


def by_places(function, *memories: Memory) -> Memory:
  """`function(axis of the places, array of the first memory, of the second, ...)`.

  It is to move numbers, see `moved`.
  """
  scales = (None, None) if memories[0].key_scale_BNC is None else (2, 2)
  axes: Any = (3, 2, *scales)

  def one(axis, *arrays):
    return moved(functools.partial(function, axis), *arrays)

  return jax.tree.map(one, Memory(*axes), *memories)


def moved(function, *arrays: jax.Array) -> jax.Array:
  """`function(*arrays)`, that moves numbers and does not compute with them.

  16-bit floats are shown to it as whole numbers: XLA on a CPU gathers and writes bf16
  by way of an fp32 copy of the whole array.
  """
  dtype = arrays[0].dtype
  if dtype.itemsize != 2:
    return function(*arrays)
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in arrays)
  return jax.lax.bitcast_convert_type(function(*bits), dtype)


def write(memory: Memory, key_BSNK, value_BSNK, start) -> Memory:
  """The memory with new keys and values from the place `start`, a scalar, on."""

  def one(axis, memory, new):
    return jax.lax.dynamic_update_slice_in_dim(memory, new, start, axis)

  return by_places(one, memory, _stored(memory, key_BSNK, value_BSNK))


def append(memory: Memory, recent: Memory, start_B, count) -> Memory:
  """The memory with the first `count` places of `recent` from `start_B` on.

  All of it is written, whatever the count, once in many steps.
  """
  place_BC = jnp.arange(places_of(memory))[None, :] - start_B[:, None]
  inside_BC = (place_BC >= 0) & (place_BC < count)
  from_BC = jnp.clip(place_BC, 0, places_of(recent) - 1)

  def one(axis, memory, recent):
    others = [i for i in range(1, memory.ndim) if i != axis]
    taken = jnp.take_along_axis(recent, jnp.expand_dims(from_BC, others), axis)
    return jnp.where(jnp.expand_dims(inside_BC, others), taken, memory)

  return by_places(one, memory, recent)


def refill(memory: Memory, read: Memory, source_B) -> Memory:
  """The memory with row `source_B` of what was read in each slot; -1 for none."""
  new_B, from_B = source_B >= 0, jnp.maximum(source_B, 0)

  def one(axis, memory, read):
    # Places behind the prompt hold what nobody looks at before it is written again.
    width = min(memory.shape[axis], read.shape[axis])
    read, kept = (jax.lax.slice_in_dim(x, 0, width, axis=axis) for x in (read, memory))
    chosen = jnp.expand_dims(new_B, range(1, memory.ndim))
    filled = jnp.where(chosen, jnp.take(read, from_B, axis=0), kept)
    return jax.lax.dynamic_update_slice_in_dim(memory, filled, 0, axis)

  return by_places(one, memory, read)


def _stored(memory: Memory, key_BSNK, value_BSNK) -> Memory:
  key_BNSK, value_BNSK = key_BSNK.swapaxes(1, 2), value_BSNK.swapaxes(1, 2)
  if memory.key_scale_BNC is None:
    dtype = memory.keys_BNKC.dtype
    return Memory(key_BNSK.astype(dtype).swapaxes(2, 3), value_BNSK.astype(dtype))
  (keys, key_scale), (values, value_scale) = rounded(key_BNSK), rounded(value_BNSK)
  return Memory(keys.swapaxes(2, 3), values, key_scale, value_scale)


def rounded(x_BNSK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """int8 and its fp32 scale: x is about numbers * scale, scale = max|x| / 127 a head.

  >>> numbers, scale = rounded(jnp.array([[[[0.5, -1.27]]]]))
  >>> numbers.tolist(), round(float(scale[0, 0, 0]), 4)
  ([[[[50, -127]]]], 0.01)
  """
  x_BNSK = x_BNSK.astype(jnp.float32)
  scale_BNS = jnp.max(jnp.abs(x_BNSK), axis=-1) / 127
  safe_BNS1 = jnp.where(scale_BNS > 0, scale_BNS, 1.0)[..., None]
  return jnp.round(x_BNSK / safe_BNS1).astype(jnp.int8), scale_BNS


@functools.partial(jax.jit, static_argnums=1)
def resize(cache: tuple[Memory, ...], places: int) -> tuple[Memory, ...]:
  """The cache with so many places, the first ones as they were."""

  def one(axis, x):
    kept = jax.lax.slice_in_dim(x, 0, min(places, x.shape[axis]), axis=axis)
    spare = [(0, 0)] * x.ndim
    spare[axis] = (0, places - kept.shape[axis])
    return jnp.pad(kept, spare)

  return tuple(by_places(one, memory) for memory in cache)
