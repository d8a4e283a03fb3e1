"""What runs on the device: a prompt read, a slot filled, several tokens drawn.

Each function here is compiled once for each shape of its cache, and for nothing else:
which slots are taken, by what and for how long are numbers.

Letters in names: B slots, N prompts, S tokens of a chunk, V vocabulary, T tokens drawn
by one call, L layers, E experts of a token.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.engines.native.cache import Memory, append, empty, refill
from tis_jax.engines.native.draw import Drawn, Law, draw
from tis_jax.engines.native.forward import Past, forward, logits
from tis_jax.engines.native.layout import Layout
from tis_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a compilation is for.

  Attributes:
    config: the decoder's shapes.
    dtype: of activations.
    law: of drawing.
    eos_ids: a response ends after any of these.
    steps: T, the most tokens a slot that one call draws.
  """

  config: DecoderConfig
  dtype: Any
  law: Law
  eos_ids: tuple[int, ...]
  steps: int


class Slots(NamedTuple):
  """The rows that are being answered, on the device.

  Attributes:
    cache: of every layer.
    token_B: int32, drawn last and not yet fed in.
    place_B: int32, where that token goes: how many stand before it.
    count_B: int32, tokens of the response that have been drawn.
    limit_B: int32, how many may be.
    live_B: bool, the response goes on.
    key_B: PRNG key of the response; token t is drawn with `fold_in(key, t)`.
  """

  cache: tuple[Memory, ...]
  token_B: jax.Array
  place_B: jax.Array
  count_B: jax.Array
  limit_B: jax.Array
  live_B: jax.Array
  key_B: jax.Array


class Read(NamedTuple):
  """Prompts that have been read, for the slots that will answer them.

  Attributes:
    cache: of every layer, one row a prompt.
    logits_NV: after the last token of each.
  """

  cache: tuple[Memory, ...]
  logits_NV: jax.Array


class Block(NamedTuple):
  """Tokens that one call has drawn, column by column.

  Attributes:
    drawn: fields [B, T, ...].
    mask_BT: which were drawn for a response that went on.
    stopped_B: whether one of them ended it.
    steps: int32, columns used.
    routed_BTLE: int16, the experts of the token that was fed in for each column; None
      where they are not recorded, and of a column that was drawn from what was read.
  """

  drawn: Drawn
  mask_BT: jax.Array
  stopped_B: jax.Array
  steps: jax.Array
  routed_BTLE: jax.Array | None = None


def no_slots(cache: tuple[Memory, ...], keys_B: jax.Array) -> Slots:
  """Free slots around an empty cache."""
  rows = cache[0].keys_BNKC.shape[0]
  # Each in a buffer of its own: they are donated.
  token_B, place_B, count_B, limit_B = (jnp.zeros(rows, jnp.int32) for _ in range(4))
  live_B = jnp.zeros(rows, bool)
  return Slots(cache, token_B, place_B, count_B, limit_B, live_B, keys_B)


@functools.partial(jax.jit, static_argnums=0, donate_argnames=("cache", "hidden_ND"))
def read(plan: Plan, layout: Layout, chunk_NS, start, lengths_N, cache, hidden_ND):
  """Reads a chunk of prompts, and keeps the last hidden state of those that end in it.

  Args:
    plan: what is compiled.
    layout: the params.
    chunk_NS: int32, padded on the right.
    start: int32, its first place in the prompts.
    lengths_N: int32, of the whole prompts.
    cache: of what came before; donated.
    hidden_ND: last hidden states so far; donated.

  Returns:
    (cache, hidden_ND, int16 [N, S, L, E] the chunk's experts or None).
  """
  config, dtype, routed = plan.config, plan.dtype, plan.law.routed_experts
  out_NSD, cache, routed_NSLE = forward(
    config, dtype, layout, chunk_NS, start, cache, routed=routed
  )
  last_N = lengths_N - 1 - start
  inside_N = (last_N >= 0) & (last_N < chunk_NS.shape[1])
  at_N = jnp.clip(last_N, 0, chunk_NS.shape[1] - 1)
  last_ND = jnp.take_along_axis(out_NSD, at_N[:, None, None], axis=1)[:, 0]
  return cache, jnp.where(inside_N[:, None], last_ND, hidden_ND), routed_NSLE


@jax.jit
def last_logits(layout: Layout, hidden_ND) -> jax.Array:
  """fp32 [N, V], of the last hidden states of prompts."""
  return logits(layout, hidden_ND)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="slots")
def fill(
  plan: Plan, slots: Slots, read: Read, source_B, length_B, said_B, limit_B, key_B
):
  """Gives prompts to free slots, and draws the next token of each response.

  Args:
    plan: what is compiled.
    slots: donated.
    read: the prompts, with what has been said in answer to them.
    source_B: which of them a slot answers; -1 leaves the slot as it is.
    length_B: tokens of it.
    said_B: of these, tokens of the response.
    limit_B: tokens that the response may have.
    key_B: PRNG key of the response.

  Returns:
    (slots, Block of one column).
  """
  new_B = source_B >= 0
  from_B = jnp.maximum(source_B, 0)
  cache = _refill(slots.cache, read.cache, source_B)
  key_B = jnp.where(new_B, key_B, slots.key_B)
  drawn = draw(plan.law, read.logits_NV[from_B], _noise(key_B, said_B))
  stopped_B = new_B & _stops(plan, drawn.tokens)
  count_B = said_B + 1
  live_B = jnp.where(new_B, ~stopped_B & (limit_B > count_B), slots.live_B)

  def pick(new, old) -> jax.Array:
    return jnp.where(new_B, new, old)

  slots = Slots(
    cache,
    token_B=pick(drawn.tokens, slots.token_B),
    place_B=pick(length_B, slots.place_B),
    count_B=pick(count_B, slots.count_B),
    limit_B=pick(limit_B, slots.limit_B),
    live_B=live_B,
    key_B=key_B,
  )
  column = jax.tree.map(lambda x: x[:, None], drawn)
  return slots, Block(column, new_B[:, None], stopped_B, jnp.int32(1))


def _refill(cache, read_cache, source_B):
  pairs = zip(cache, read_cache, strict=True)
  return tuple(refill(memory, read, source_B) for memory, read in pairs)


reread = jax.jit(_refill, donate_argnums=0)
"""The cache of slots, with what was read of row `source_B` in it; -1 for none."""


@functools.partial(jax.jit, static_argnums=0, donate_argnames="slots")
def decode(plan: Plan, layout: Layout, slots: Slots, steps, enough):
  """Draws up to `steps` tokens for every response that goes on.

  Keys and values of this call's tokens go to a cache of their own, at the same place of
  every slot, and to the slots' places when it ends: a step writes one place of a few,
  where a scatter would move the whole cache on a CPU.

  Args:
    plan: what is compiled.
    layout: the params.
    slots: donated.
    steps: at most `plan.steps`.
    enough: ends early when fewer responses than this go on; at 1, when none does.

  Returns:
    (slots, Block).
  """
  rows, room = slots.token_B.shape[0], plan.steps
  past, slots = Past(slots.cache, slots.place_B), slots._replace(cache=())
  dtype = past.cache[0].keys_BNKC.dtype

  def goes_on(carry):
    step, slots, *_ = carry
    return (step < steps) & (slots.live_B.sum(dtype=jnp.int32) >= enough)

  def one(carry):
    step, slots, drawn, routed_BTLE, mask_BT, stopped_B = carry
    hidden_B1D, cache, routed_B1LE = forward(
      plan.config,
      plan.dtype,
      layout,
      slots.token_B[:, None],
      step,
      slots.cache,
      past,
      routed=plan.law.routed_experts,
    )
    logits_BV = logits(layout, hidden_B1D[:, 0])
    new = draw(plan.law, logits_BV, _noise(slots.key_B, slots.count_B))

    def column(all_BT, new_B):
      return jax.lax.dynamic_update_index_in_dim(all_BT, new_B, step, 1)

    drawn = jax.tree.map(column, drawn, new)
    if routed_BTLE is not None and routed_B1LE is not None:
      routed_BTLE = column(routed_BTLE, routed_B1LE[:, 0])
    live_B = slots.live_B
    stops_B = live_B & _stops(plan, new.tokens)
    moved_B = live_B.astype(jnp.int32)
    count_B = slots.count_B + moved_B
    slots = slots._replace(
      cache=cache,
      token_B=jnp.where(live_B, new.tokens, slots.token_B),
      place_B=slots.place_B + moved_B,
      count_B=count_B,
      live_B=live_B & ~stops_B & (count_B < slots.limit_B),
    )
    mask_BT = column(mask_BT, live_B)
    return step + 1, slots, drawn, routed_BTLE, mask_BT, stopped_B | stops_B

  shapes = jax.eval_shape(
    lambda head: draw(plan.law, jnp.zeros((rows, len(head))), slots.key_B),
    layout.head_VD,
  )
  blank = jax.tree.map(lambda x: jnp.zeros((rows, room, *x.shape[1:]), x.dtype), shapes)
  nothing_BT, none_B = jnp.zeros((rows, room), bool), jnp.zeros((rows,), bool)
  slots = slots._replace(cache=empty(plan.config, rows, room, dtype))
  routed_BTLE = None
  if plan.law.routed_experts:
    assert plan.config.routing is not None, "the engine looks"
    routed_BTLE = jnp.zeros((rows, room, *plan.config.routing), jnp.int16)
  start = (jnp.int32(0), slots, blank, routed_BTLE, nothing_BT, none_B)
  step, slots, drawn, routed_BTLE, mask_BT, stopped_B = jax.lax.while_loop(
    goes_on, one, start
  )
  # Of a response that ended on the way nobody looks at any more.
  pairs = zip(past.cache, slots.cache, strict=True)
  cache = tuple(append(old, new, past.length_B, step) for old, new in pairs)
  slots = slots._replace(cache=cache)
  return slots, Block(drawn, mask_BT, stopped_B, step, routed_BTLE)


def _noise(key_B, count_B):
  return jax.vmap(jax.random.fold_in)(key_B, count_B)


def _stops(plan: Plan, token_B):
  if not plan.eos_ids:
    return jnp.zeros(token_B.shape, bool)
  return jnp.isin(token_B, jnp.array(plan.eos_ids, jnp.int32))
