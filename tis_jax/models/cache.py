"""The key-value cache of incremental decoding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.models.config import DecoderConfig


class KVCache(NamedTuple):
  """Keys and values of the tokens seen so far; rows advance together.

  Attributes:
    keys_LBCNK: rotated keys, [layers, batch, capacity, kv heads, head width].
    values_LBCNK: values, the same shape.
    segment_ids_BC: int32 segment of each slot; 0 where nothing may be attended.
    length: int32 scalar, the next free slot of every row.
  """

  keys_LBCNK: jax.Array
  values_LBCNK: jax.Array
  segment_ids_BC: jax.Array
  length: jax.Array


def init_cache(
  config: DecoderConfig, batch: int, capacity: int, dtype=jnp.float32
) -> KVCache:
  """An empty cache for `batch` rows of at most `capacity` tokens.

  Args:
    config: the decoder's shapes.
    batch: rows, B.
    capacity: slots a row, C: prompt and response together.
    dtype: of the keys and values; the decoder's activation dtype, or narrower.

  Returns:
    KVCache with length 0 and no slot valid.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=64, intermediate_size=128,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
    >>> init_cache(config, batch=3, capacity=8).keys_LBCNK.shape
    (2, 3, 8, 2, 16)
  """
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  return KVCache(
    jnp.zeros(shape, dtype),
    jnp.zeros(shape, dtype),
    jnp.zeros((batch, capacity), jnp.int32),
    jnp.zeros((), jnp.int32),
  )
