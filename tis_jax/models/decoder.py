"""A Llama-like decoder in Flax NNX: one block, stacked over layers and scanned."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.models.attend_long import attend_long
from tis_jax.models.cache import KVCache
from tis_jax.models.config import DecoderConfig
from tis_jax.models.layers import Block, Near, attend, rms_norm, rotary_angles
from tis_jax.models.long_attention import is_long, sees
from tis_jax.models.sharding import ROWS, constrain

# The width of a window that nothing lies outside of.
_EVERYTHING = 2**30


class Decoder(nnx.Module):
  """Decoder-only transformer: tokens in, final hidden states out.

  The output head is separate (`head`), so that log-probs can be taken without holding
  [B, S, V] logits. Layers are stacked, [L, ...] an array, and run by `lax.scan`:
  compile time does not grow with depth.

  Args:
    config: shapes and arithmetic.
    rngs: `nnx.Rngs` with a `params` stream; normal(1/sqrt(fan in)) params.
    dtype: of the activations. Norms, rotary angles, attention logits and softmax are
      fp32 inside, every contraction accumulates in fp32.
    param_dtype: of the parameters.
    remat: recompute each layer in the backward pass instead of keeping its inside.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> model = Decoder(config, rngs=nnx.Rngs(0))
    >>> hidden_BSD, _ = model(jnp.array([[3, 1, 4]]))
    >>> (hidden_BSD @ model.head()).shape
    (1, 3, 19)
  """

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    remat: bool = False,
  ):
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.remat = remat
    shape = (config.vocab_size, config.hidden_size)
    scale = config.hidden_size**-0.5

    def table(shape):
      return nnx.Param(scale * jax.random.normal(rngs.params(), shape, param_dtype))

    self.embedding = table(shape)
    self.layers = nnx.vmap(
      lambda rngs: Block(config, rngs=rngs, param_dtype=param_dtype)
    )(rngs.fork(split=config.num_layers))
    self.final_norm = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))
    if not config.tie_embeddings:
      self.output = table(shape[::-1])

  def head(self) -> jax.Array:
    """The output matrix [D, V] in the activations' dtype."""
    if self.config.tie_embeddings:
      return constrain(self.embedding[...].astype(self.dtype), "tensor").T
    return constrain(self.output[...].astype(self.dtype), (), "tensor")

  def __call__(
    self,
    tokens_BS: jax.Array,
    *,
    segment_ids_BS: jax.Array | None = None,
    positions_BS: jax.Array | None = None,
    prefixes_BS: jax.Array | None = None,
    routed_BSLE: jax.Array | None = None,
    cache: KVCache | None = None,
  ) -> tuple[jax.Array, KVCache | None]:
    """Hidden states of `tokens_BS` after the final norm, and the cache with them in it.

    A token attends to the tokens up to itself in its own segment. With a cache the S
    tokens take the slots `length .. length + S - 1` and also attend to earlier ones.

    Args:
      tokens_BS: int32 ids.
      segment_ids_BS: int32; 0 is padding, tokens attend inside equal non-zero ids, a
        segment is contiguous. None: all of a row is segment 1.
      positions_BS: int32; None counts from 0 inside each segment (left padding and
        packing need nothing more), going on from the cache.
      prefixes_BS: int32; a further segment of its row that a token attends to, 0 for
        none: the prompt that several responses go on from. Needs their positions.
      routed_BSLE: int, of a mixture: the experts that each layer is to send each token
        to, weighed by the shares that the router here gives them. A token with a -1 in
        a layer goes where that router sends it; None: all do.
      cache: from `init_cache`, with S free slots left (unchecked under jit).

    Returns:
      (hidden_BSD in `dtype`, the advanced cache or None).

    Raises:
      ValueError: `routed_BSLE` for a model that is no mixture.
    """
    if routed_BSLE is not None and not self.config.num_experts:
      raise ValueError("the model is no mixture of experts, so no token can be routed")
    if segment_ids_BS is None:
      segment_ids_BS = jnp.ones(tokens_BS.shape, jnp.int32)
    if cache is not None:
      cache = cache._replace(
        segment_ids_BC=jax.lax.dynamic_update_slice(
          cache.segment_ids_BC, segment_ids_BS.astype(jnp.int32), (0, cache.length)
        )
      )
    if positions_BS is None:
      positions_BS = _positions(segment_ids_BS, cache)
    attend = _attends(segment_ids_BS, prefixes_BS, cache)
    window = self.config.window
    positions = _window_positions(positions_BS, cache)
    angles = full_angles = rotary_angles(self.config, positions_BS)
    if window is not None:
      angles = rotary_angles(self.config, positions_BS, windowed=True)
    # The table is gathered over fsdp before the lookup, like all params.
    embedding_VD = constrain(self.embedding[...], "tensor")
    x_BSD = jnp.take(embedding_VD, tokens_BS, axis=0).astype(self.dtype)
    if self.config.scaled_embedding:
      x_BSD = x_BSD * jnp.asarray(self.config.hidden_size**0.5, self.dtype)
    x_BSD = constrain(x_BSD, ROWS)
    graph, stacked = nnx.split(self.layers)

    def layer(carry, layer_inputs):
      x_BSD, memory = carry
      params, index, routed_BSE = layer_inputs
      attends, turns = attend, angles
      if window is not None:
        full = window.is_full(index)
        turns = jax.tree.map(functools.partial(jnp.where, full), full_angles, angles)
        width = jnp.where(full, _EVERYTHING, window.size)
        attends = functools.partial(attend, near=Near(width, *positions))
      attention = functools.partial(_attention, attends, memory, index)
      block = nnx.merge(graph, params)
      x_BSD, memory = block(x_BSD, turns, attention, routed_BSE)
      return (constrain(x_BSD, ROWS), memory), None

    if self.remat:
      # Inside a scan the optimiser cannot undo the recomputation; no barrier needed.
      layer = jax.checkpoint(layer, prevent_cse=False)
    indices = jnp.arange(self.config.num_layers)
    routed_LBSE = None if routed_BSLE is None else jnp.moveaxis(routed_BSLE, 2, 0)
    (x_BSD, cache), _ = jax.lax.scan(
      layer, (x_BSD, cache), (stacked, indices, routed_LBSE)
    )
    if cache is not None:
      cache = cache._replace(length=cache.length + tokens_BS.shape[1])
    return rms_norm(x_BSD, self.final_norm[...], self.config.rms_norm_eps), cache


def _attention(attend, cache, layer, query, key, value):
  """Attends to the new keys, or to the cache with them written into `layer`."""
  if cache is None:
    return attend(query, key, value), None

  def write(memory, new):
    # The whole cache is carried and written in place; handing out layer by layer would
    # copy all of it at every token.
    start = (layer, 0, cache.length, 0, 0)
    return jax.lax.dynamic_update_slice(memory, new[None].astype(memory.dtype), start)

  cache = cache._replace(
    keys_LBCNK=write(cache.keys_LBCNK, key),
    values_LBCNK=write(cache.values_LBCNK, value),
  )
  keys, values = (
    jax.lax.dynamic_index_in_dim(memory, layer, keepdims=False)
    for memory in (cache.keys_LBCNK, cache.values_LBCNK)
  )
  return attend(query, keys, values), cache


def _positions(segment_ids_BS, cache):
  """Index of each token inside its segment, counting what the cache holds of it."""
  length = segment_ids_BS.shape[1]
  index_1S = jnp.arange(length)[None, :]
  previous = jnp.roll(segment_ids_BS, 1, axis=1)
  starts = (segment_ids_BS != previous) | (index_1S == 0)
  first_BS = jax.lax.cummax(jnp.where(starts, index_1S, 0), axis=1)
  positions_BS = index_1S - first_BS
  if cache is None:
    return positions_BS
  slots_1C = jnp.arange(cache.segment_ids_BC.shape[1])[None, :]
  seen_BC = jnp.where(slots_1C < cache.length, cache.segment_ids_BC, 0)
  same_BSC = segment_ids_BS[:, :, None] == seen_BC[:, None, :]
  return positions_BS + jnp.sum(same_BSC, axis=-1, dtype=jnp.int32)


def _window_positions(positions_BS, cache):
  """Positions of the tokens and of the slots, as far as their differences go."""
  if cache is None:
    return positions_BS, positions_BS
  # A row of a cache holds one segment, without a gap.
  rows, slots = cache.segment_ids_BC.shape
  slots_BC = jnp.broadcast_to(jnp.arange(slots)[None, :], (rows, slots))
  slots_1S = cache.length + jnp.arange(positions_BS.shape[1])[None, :]
  return jnp.broadcast_to(slots_1S, positions_BS.shape), slots_BC


def _attends(segment_ids_BS, prefixes_BS, cache):
  """`attend(query, keys, values, near=None)`: to one's segment and its prefix, not
  later, and to what is near."""
  slots_S = jnp.arange(segment_ids_BS.shape[1])
  segment_ids_BC = segment_ids_BS
  if cache is not None:
    segment_ids_BC, slots_S = cache.segment_ids_BC, slots_S + cache.length
  if is_long(segment_ids_BS.shape[1], segment_ids_BC.shape[1]):
    return functools.partial(
      attend_long,
      places_BS=jnp.broadcast_to(slots_S[None, :], segment_ids_BS.shape),
      segments_BS=segment_ids_BS,
      segments_BC=segment_ids_BC,
      prefixes_BS=prefixes_BS,
    )
  slots_C = jnp.arange(segment_ids_BC.shape[1])
  causal_1SC = (slots_C[None, :] <= slots_S[:, None])[None]
  same_BSC = sees(segment_ids_BS, prefixes_BS, segment_ids_BC)
  mask_BSC = causal_1SC & same_BSC & (segment_ids_BS != 0)[:, :, None]

  def attends(query, keys, values, near: Near | None = None):
    seen_BSC = mask_BSC if near is None else mask_BSC & near.mask_BSC
    return attend(query, keys, values, seen_BSC)

  return attends
