"""Keys and values of the tokens that slots have seen, a layer at a time.

Letters in names: B slots, C places of a slot, N key heads, K head width, S new tokens.
Heads stand before places, so that a head's places lie beside each other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.models.config import DecoderConfig

_LEAST = 128
_STEP = 8


class Half(NamedTuple):
  """The keys or the values of one layer.

  Attributes:
    numbers_BNCK: in the cache's dtype.
    scale_BNC: fp32, what whole numbers are multiplied by; None of floats.
  """

  numbers_BNCK: jax.Array
  scale_BNC: jax.Array | None = None


class Memory(NamedTuple):
  """Keys and values of one layer."""

  keys: Half
  values: Half


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
  shape = (slots, config.num_kv_heads, places, config.head_dim)

  def half() -> Half:
    scale = jnp.zeros(shape[:3]) if dtype == jnp.int8 else None
    return Half(jnp.zeros(shape, dtype), scale)

  return tuple(Memory(half(), half()) for _ in range(config.num_layers))


def write(memory: Memory, key_BSNK, value_BSNK, start) -> Memory:
  """The memory with new keys and values at `start`, a scalar or one a slot, and on."""
  new = Memory(_stored(memory.keys, key_BSNK), _stored(memory.values, value_BSNK))
  if jnp.ndim(start) == 0:
    return jax.tree.map(lambda x, new: _put(x, new, 0, start), memory, new)
  if key_BSNK.shape[1] > 1:
    return _scattered(memory, new, start)
  # XLA on a CPU scatters bf16 by way of an fp32 copy of the whole cache: for 30 layers
  # of 16 slots of 128 places that is 130 ms, and to write all of it anew 5 ms.
  return jax.lax.platform_dependent(memory, new, start, cpu=_chosen, default=_scattered)


def _stored(half: Half, new_BSNK) -> Half:
  new_BNSK = new_BSNK.swapaxes(1, 2)
  if half.scale_BNC is None:
    return Half(new_BNSK.astype(half.numbers_BNCK.dtype))
  return Half(*rounded(new_BNSK))


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


def _put(memory, new, slot, start):
  at = (slot, 0, start) + (0,) * (memory.ndim - 3)
  return jax.lax.dynamic_update_slice(memory, new, at)


def _scattered(memory: Memory, new: Memory, start_B) -> Memory:
  def one(memory, new, start):
    at = (0, start) + (0,) * (memory.ndim - 2)
    return jax.lax.dynamic_update_slice(memory, new, at)

  return jax.tree.map(lambda x, new: jax.vmap(one)(x, new, start_B), memory, new)


def _chosen(memory: Memory, new: Memory, start_B) -> Memory:
  places = memory.keys.numbers_BNCK.shape[2]
  here_BC = jnp.arange(places)[None, :] == start_B[:, None]

  def one(x, new):
    return jnp.where(jnp.expand_dims(here_BC, (1, *range(3, x.ndim))), new, x)

  return jax.tree.map(one, memory, new)


@functools.partial(jax.jit, static_argnums=1)
def resize(cache: tuple[Memory, ...], places: int) -> tuple[Memory, ...]:
  """The cache with so many places, the first ones as they were."""

  def one(x):
    kept = x[:, :, :places]
    spare = [(0, 0)] * x.ndim
    spare[2] = (0, places - kept.shape[2])
    return jnp.pad(kept, spare)

  return jax.tree.map(one, cache)


def places_of(cache: tuple[Memory, ...]) -> int:
  """C."""
  return cache[0].keys.numbers_BNCK.shape[2]
