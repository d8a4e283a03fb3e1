"""The decoder's forward pass over a layout: new tokens of every slot, and its cache.

The arithmetic is that of `tis_jax.models.Decoder`: fp32 norms, angles and softmax,
products accumulated in fp32 and rounded to the activations' dtype.

Letters in names: B slots, S new tokens of each, T = B * S, C places in the cache, D
width, N key heads, G query heads a key head, K head width.
"""

import jax
import jax.numpy as jnp

from tis_jax.engines.native.cache import Half, Memory, write
from tis_jax.engines.native.layout import LayerLayout, Layout
from tis_jax.models.config import DecoderConfig
from tis_jax.models.layers import (
  MASKED,
  Near,
  gate_activation,
  rms_norm,
  rotary_angles,
  rotate,
)
from tis_jax.models.long_attention import attend_in_blocks, is_long
from tis_jax.models.precision import multiply

Cache = tuple[Memory, ...]


def forward(
  config: DecoderConfig, dtype, layout: Layout, tokens_BS, start, cache: Cache
) -> tuple[jax.Array, Cache]:
  """Hidden states of new tokens after the final norm, and the cache with them in it.

  A token at place p sees the places up to p of its slot, whatever was left behind them.

  Args:
    config: shapes and arithmetic.
    dtype: of the activations.
    layout: the params.
    tokens_BS: int32.
    start: int32, the place of each slot's first new token: a scalar, or [B].
    cache: with places for them.

  Returns:
    (hidden_BSD in `dtype`, the cache).
  """
  rows, new = tokens_BS.shape
  positions_BS = jnp.broadcast_to(start, (rows,))[:, None] + jnp.arange(new)[None, :]
  full = (rotary_angles(config, positions_BS), None)
  windowed = full
  if config.window is not None:
    angles = rotary_angles(config, positions_BS, windowed=True)
    windowed = (angles, config.window.size)
  x_BSD = jnp.take(layout.embedding_VD, tokens_BS, axis=0).astype(dtype)
  if config.scaled_embedding:
    x_BSD = x_BSD * jnp.asarray(config.hidden_size**0.5, dtype)
  x_TD = x_BSD.reshape(rows * new, -1)
  memories = []
  for index, (layer, memory) in enumerate(zip(layout.layers, cache, strict=True)):
    sees_all = config.window is None or config.window.is_full(index)
    sees = full if sees_all else windowed
    x_TD, memory = _block(config, layer, x_TD, sees, positions_BS, start, memory)
    memories.append(memory)
  hidden_TD = rms_norm(x_TD, layout.final_norm, config.rms_norm_eps)
  return hidden_TD.reshape(rows, new, -1), tuple(memories)


def logits(layout: Layout, hidden_BD: jax.Array) -> jax.Array:
  """fp32 logits [B, V] of final hidden states."""
  head_DV = layout.head_DV
  return multiply("bd,dv->bv", hidden_BD.astype(head_DV.dtype), head_DV)


def _block(config, layer: LayerLayout, x_TD, sees, positions_BS, start, memory):
  eps, kv, (angles, window) = config.rms_norm_eps, config.num_kv_heads, sees
  heads = layer.heads(rms_norm(x_TD, layer.attention_norm, eps))
  if layer.bias is not None:
    heads = heads + layer.bias.astype(heads.dtype)[None, :]
  heads = heads.reshape(*positions_BS.shape, -1, config.head_dim)
  query, key, value = jnp.split(heads, [config.num_heads, config.num_heads + kv], 2)
  if layer.query_norm is not None and layer.key_norm is not None:
    query = rms_norm(query, layer.query_norm, eps)
    key = rms_norm(key, layer.key_norm, eps)
  query, key = rotate(query, angles), rotate(key, angles)
  memory = write(memory, key, value, start)
  mixed_BSHK = _attend(query, memory, positions_BS, kv, window)
  added_TD = layer.out(mixed_BSHK.reshape(x_TD.shape[0], -1))
  if layer.attention_post_norm is not None:
    added_TD = rms_norm(added_TD, layer.attention_post_norm, eps)
  x_TD = x_TD + added_TD
  added_TD = _mlp(config, layer, rms_norm(x_TD, layer.mlp_norm, eps))
  if layer.mlp_post_norm is not None:
    added_TD = rms_norm(added_TD, layer.mlp_post_norm, eps)
  return x_TD + added_TD, memory


def _mlp(config, layer: LayerLayout, x_TD):
  if layer.experts is not None:
    return layer.experts(x_TD, config.experts_per_token, config.normalize_experts)[0]
  assert layer.gate_up is not None and layer.down is not None
  gate, up = jnp.split(layer.gate_up(x_TD), 2, axis=1)
  return layer.down(gate_activation(config)(gate) * up)


def _attend(query_BSHK, memory: Memory, positions_BS, kv: int, window) -> jax.Array:
  """softmax(query . keys / sqrt(K)) . values over the places up to each token's own: of
  them the last `window`, or all."""
  rows, new, heads, width = query_BSHK.shape
  group, places = heads // kv, memory.keys.numbers_BNCK.shape[2]
  if is_long(new, places):
    query_BSNGK = query_BSHK.reshape(rows, new, kv, group, width)
    keys, values = (_floats(half, query_BSHK.dtype) for half in memory)
    one = jnp.ones_like(positions_BS), jnp.ones((rows, places), jnp.int32)
    near = None
    if window is not None:
      places_BC = jnp.broadcast_to(jnp.arange(places)[None, :], (rows, places))
      near = Near(window, positions_BS, places_BC)
    mixed = attend_in_blocks(query_BSNGK, keys, values, positions_BS, *one, near=near)
    return mixed.reshape(query_BSHK.shape)
  query_BNSGK = query_BSHK.reshape(rows, new, kv, group, width).swapaxes(1, 2)
  query_BNQK = query_BNSGK.reshape(rows, kv, new * group, width)
  weights_BNQC = _product("bnqk,bnck->bnqc", query_BNQK, memory.keys)
  back_BSC = positions_BS[:, :, None] - jnp.arange(places)[None, None, :]
  seen_BSC = back_BSC >= 0
  if window is not None:
    seen_BSC &= back_BSC < window
  seen_BQC = jnp.repeat(seen_BSC, group, axis=1)
  weights_BNQC = jnp.where(seen_BQC[:, None], weights_BNQC * width**-0.5, MASKED)
  weights_BNQC = jax.nn.softmax(weights_BNQC, axis=-1)
  half = memory.values
  if half.scale_BNC is not None:
    weights_BNQC = weights_BNQC * half.scale_BNC[:, :, None, :]
  weights_BNQC = weights_BNQC.astype(query_BSHK.dtype)
  values_BNCK = half.numbers_BNCK.astype(query_BSHK.dtype)
  mixed_BNQK = multiply("bnqc,bnck->bnqk", weights_BNQC, values_BNCK)
  mixed_BNSGK = mixed_BNQK.astype(query_BSHK.dtype).reshape(query_BNSGK.shape)
  return mixed_BNSGK.swapaxes(1, 2).reshape(query_BSHK.shape)


def _product(equation: str, query_BNQK, half: Half) -> jax.Array:
  """fp32 [B, N, Q, C]."""
  product = multiply(equation, query_BNQK, half.numbers_BNCK.astype(query_BNQK.dtype))
  if half.scale_BNC is None:
    return product
  return product * half.scale_BNC[:, :, None, :]


def _floats(half: Half, dtype) -> jax.Array:
  """[B, C, N, K], as the learner's attention has them."""
  numbers_BNCK = half.numbers_BNCK
  if half.scale_BNC is not None:
    numbers_BNCK = numbers_BNCK.astype(jnp.float32) * half.scale_BNC[..., None]
  return numbers_BNCK.astype(dtype).swapaxes(1, 2)
