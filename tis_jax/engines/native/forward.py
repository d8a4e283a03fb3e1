"""The decoder's forward pass over a layout: new tokens of every slot, and its cache.

The arithmetic is that of `tis_jax.models.Decoder`: fp32 norms, angles and softmax,
products accumulated in fp32 and rounded to the activations' dtype.

Letters in names: B slots, S new tokens of each, T = B * S, C places in a memory, D
width, N key heads, G query heads a key head, K head width, Q = S * G, L layers, E
experts of a token.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.engines.native.cache import Memory, moved, places_of, write
from tis_jax.engines.native.layout import LayerLayout, Layout, times
from tis_jax.models.attend_long import attend_long
from tis_jax.models.config import DecoderConfig
from tis_jax.models.layers import (
  MASKED,
  Near,
  gate_activation,
  rms_norm,
  rotary_angles,
  rotate,
)
from tis_jax.models.long_attention import is_long
from tis_jax.models.precision import multiply

Cache = tuple[Memory, ...]


class Past(NamedTuple):
  """What slots have seen before: looked at, never written.

  Attributes:
    cache: of every layer.
    length_B: int32, how many places of it each slot has.
  """

  cache: Cache
  length_B: jax.Array


def forward(
  config: DecoderConfig,
  dtype,
  layout: Layout,
  tokens_BS,
  start,
  cache: Cache,
  past: Past | None = None,
  *,
  routed: bool = False,
) -> tuple[jax.Array, Cache, jax.Array | None]:
  """Hidden states of new tokens after the final norm, and the cache with them in it.

  A token sees the past of its slot and the places of the cache up to its own, whatever
  was left behind them. All slots write at the same places, so a step writes in place;
  slots of different lengths differ in their past.

  Args:
    config: shapes and arithmetic.
    dtype: of the activations.
    layout: the params.
    tokens_BS: int32.
    start: int32 scalar, the place of the first new token in the cache.
    cache: with places for them.
    past: what comes before the cache; None for nothing.
    routed: give the experts, too, of a mixture.

  Returns:
    (hidden_BSD in `dtype`, the cache, int16 [B, S, L, E] to which experts each layer
    sent each token, or None).
  """
  rows, new = tokens_BS.shape
  places_BS = jnp.broadcast_to(start + jnp.arange(new), (rows, new))
  length_B1 = jnp.reshape(0 if past is None else past.length_B, (-1, 1))
  positions_BS = places_BS + length_B1

  def sees(window: int | None) -> _Sees:
    seen = [_up_to(places_BS, cache[0], places_BS, window)]
    if past is not None:
      before_BS = jnp.broadcast_to(length_B1 - 1, (rows, new))
      seen.insert(0, _up_to(before_BS, past.cache[0], positions_BS, window))
    angles = rotary_angles(config, positions_BS, windowed=window is not None)
    return _Sees(angles, places_BS, window, seen)

  full = sees(None)
  windowed = full if config.window is None else sees(config.window.size)
  x_BSD = moved(lambda x_VD: x_VD[tokens_BS], layout.embedding_VD).astype(dtype)
  if config.scaled_embedding:
    x_BSD = x_BSD * jnp.asarray(config.hidden_size**0.5, dtype)
  x_TD = x_BSD.reshape(rows * new, -1)
  memories, chosen = [], []
  for index, (layer, memory) in enumerate(zip(layout.layers, cache, strict=True)):
    sees_all = config.window is None or config.window.is_full(index)
    before = [] if past is None else [past.cache[index]]
    x_TD, memory, experts_TE = _block(
      config, layer, x_TD, full if sees_all else windowed, start, memory, before
    )
    memories.append(memory)
    chosen.append(experts_TE)
  hidden_TD = rms_norm(x_TD, layout.final_norm, config.rms_norm_eps)
  routed_BSLE = None
  if routed:
    routed_TLE = jnp.stack(chosen, axis=1).astype(jnp.int16)
    routed_BSLE = routed_TLE.reshape(rows, new, *routed_TLE.shape[1:])
  return hidden_TD.reshape(rows, new, -1), tuple(memories), routed_BSLE


def logits(layout: Layout, hidden_BD: jax.Array) -> jax.Array:
  """fp32 logits [B, V] of final hidden states."""
  return times(hidden_BD.astype(layout.head_VD.dtype), layout.head_VD)


class _Sees(NamedTuple):
  """What the new tokens see in a layer.

  Attributes:
    angles: of their positions.
    places_BS: where they stand in the cache.
    window: how many places each sees, its own included; None for all.
    seen: bool [B, S, C] of the past, if there is one, and of the cache.
  """

  angles: tuple[jax.Array, jax.Array]
  places_BS: jax.Array
  window: int | None
  seen: list[jax.Array]


def _block(config, layer: LayerLayout, x_TD, sees: _Sees, start, memory, before):
  eps, kv = config.rms_norm_eps, config.num_kv_heads
  heads = layer.heads(rms_norm(x_TD, layer.attention_norm, eps))
  if layer.bias is not None:
    heads = heads + layer.bias.astype(heads.dtype)[None, :]
  heads = heads.reshape(*sees.places_BS.shape, -1, config.head_dim)
  query, key, value = jnp.split(heads, [config.num_heads, config.num_heads + kv], 2)
  if layer.query_norm is not None and layer.key_norm is not None:
    query = rms_norm(query, layer.query_norm, eps)
    key = rms_norm(key, layer.key_norm, eps)
  query, key = rotate(query, sees.angles), rotate(key, sees.angles)
  memory = write(memory, key, value, start)
  if before or not is_long(sees.places_BS.shape[1], places_of(memory)):
    mixed_BSHK = _attend(query, [*before, memory], sees.seen, kv)
  else:
    mixed_BSHK = _attend_long(query, memory, sees, kv)
  added_TD = layer.out(mixed_BSHK.reshape(x_TD.shape[0], -1))
  if layer.attention_post_norm is not None:
    added_TD = rms_norm(added_TD, layer.attention_post_norm, eps)
  x_TD = x_TD + added_TD
  added_TD, experts_TE = _mlp(config, layer, rms_norm(x_TD, layer.mlp_norm, eps))
  if layer.mlp_post_norm is not None:
    added_TD = rms_norm(added_TD, layer.mlp_post_norm, eps)
  return x_TD + added_TD, memory, experts_TE


def _mlp(config, layer: LayerLayout, x_TD):
  """What the MLP adds, and the experts that it took; None where there are none."""
  if layer.experts is not None:
    return layer.experts(x_TD, config.experts_per_token, config.normalize_experts)
  assert layer.gate_up is not None and layer.down is not None
  gate, up = jnp.split(layer.gate_up(x_TD), 2, axis=1)
  return layer.down(gate_activation(config)(gate) * up), None


def _up_to(last_BS, memory: Memory, at_BS, window: int | None) -> jax.Array:
  """bool [B, S, C]: the places up to the last, and in a token's window, if it has one.

  Args:
    last_BS: the last place.
    memory: whose places.
    at_BS: where the token stands, counted as the places are.
    window: as in `_Sees`.
  """
  places_11C = jnp.arange(places_of(memory))[None, None, :]
  seen_BSC = places_11C <= last_BS[:, :, None]
  if window is not None:
    seen_BSC &= at_BS[:, :, None] - places_11C < window
  return seen_BSC


def _attend(query_BSHK, memories: list[Memory], seen: list, kv: int) -> jax.Array:
  """softmax(query . keys / sqrt(K)) . values over what is seen of all memories."""
  rows, new, heads, width = query_BSHK.shape
  dtype, group = query_BSHK.dtype, heads // kv
  query_BNSGK = query_BSHK.reshape(rows, new, kv, group, width).swapaxes(1, 2)
  query_BNQK = query_BNSGK.reshape(rows, kv, new * group, width)
  weights_BNQC = jnp.concatenate(
    [_product(query_BNQK, memory) for memory in memories], axis=-1
  )
  seen_BQC = jnp.repeat(jnp.concatenate(seen, axis=-1), group, axis=1)
  weights_BNQC = jnp.where(seen_BQC[:, None], weights_BNQC * width**-0.5, MASKED)
  weights_BNQC = jax.nn.softmax(weights_BNQC, axis=-1)
  ends = list(itertools.accumulate(map(places_of, memories)))
  parts = jnp.split(weights_BNQC, ends[:-1], axis=-1)
  mixed = [_mixed(*pair, dtype) for pair in zip(parts, memories, strict=True)]
  mixed_BNSGK = functools.reduce(jnp.add, mixed).astype(dtype)
  mixed_BNSGK = mixed_BNSGK.reshape(query_BNSGK.shape)
  return mixed_BNSGK.swapaxes(1, 2).reshape(query_BSHK.shape)


def _mixed(weights_BNQC, memory: Memory, dtype) -> jax.Array:
  """fp32 [B, N, Q, K]: the values of a memory, weighted."""
  if memory.value_scale_BNC is not None:
    weights_BNQC = weights_BNQC * memory.value_scale_BNC[:, :, None, :]
  values_BNCK = memory.values_BNCK.astype(dtype)
  return multiply("bnqc,bnck->bnqk", weights_BNQC.astype(dtype), values_BNCK)


def _product(query_BNQK, memory: Memory) -> jax.Array:
  """fp32 [B, N, Q, C]."""
  keys_BNKC = memory.keys_BNKC.astype(query_BNQK.dtype)
  product = multiply("bnqk,bnkc->bnqc", query_BNQK, keys_BNKC)
  if memory.key_scale_BNC is None:
    return product
  return product * memory.key_scale_BNC[:, :, None, :]


def _attend_long(query_BSHK, memory: Memory, sees: _Sees, kv: int) -> jax.Array:
  """What `_attend` computes of one memory, without an array of all tokens by places."""
  rows, new, heads, width = query_BSHK.shape
  query_BSNGK = query_BSHK.reshape(rows, new, kv, heads // kv, width)
  keys_BCNK = _floats(memory.keys_BNKC.swapaxes(2, 3), memory.key_scale_BNC)
  values_BCNK = _floats(memory.values_BNCK, memory.value_scale_BNC)
  places_BS, places = sees.places_BS, keys_BCNK.shape[:2]
  one = jnp.ones((rows, new), jnp.int32), jnp.ones(places, jnp.int32)
  near = None
  if sees.window is not None:
    places_BC = jnp.broadcast_to(jnp.arange(places[1])[None, :], places)
    near = Near(jnp.asarray(sees.window), places_BS, places_BC)
  mixed = attend_long(query_BSNGK, keys_BCNK, values_BCNK, places_BS, *one, near=near)
  return mixed.reshape(query_BSHK.shape)


def _floats(numbers_BNCK, scale_BNC) -> jax.Array:
  """[B, C, N, K], as the learner's attention has them."""
  if scale_BNC is not None:
    numbers_BNCK = numbers_BNCK.astype(jnp.float32) * scale_BNC[..., None]
  return numbers_BNCK.swapaxes(1, 2)
