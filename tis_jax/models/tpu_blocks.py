"""A TPU kernel walks over blocks of tokens and slots, past those that nobody sees.

Tokens and slots lie along the lanes of every array: then a token's running maximum and
sum are elements of a row, and a head of 64 wastes no memory. A step takes one block of
slots against one block of tokens, of all query heads that share a key head. Of the
blocks only those between the first and the last that may be seen are fetched and
computed.

Letters in names: B rows, N key heads, G query heads a key head, K head width, S tokens,
C slots, M marks of each, I blocks of tokens, J blocks of slots; inside a kernel S and C
are those of a block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_MOST = 512
# Elements in a block of queries: their gradient in fp32 is a mebibyte.
_QUERIES = 2**18
_FAR = 2**30


class Marks(NamedTuple):
  """Who sees whom: a token the slots up to its last, of its segment, that are near.

  Attributes:
    last_BS: int32, the last slot that a token may see; -1 for none.
    segments_BS: int32.
    segments_BC: int32.
    prefixes_BS: int32, a further segment that a token sees, or its own; None: no token
      has one.
    nearest_BS: int32, the first position that a token sees; None: it sees all.
    positions_BC: int32, of the slots, where there is a first.
  """

  last_BS: jax.Array
  segments_BS: jax.Array
  segments_BC: jax.Array
  prefixes_BS: jax.Array | None = None
  nearest_BS: jax.Array | None = None
  positions_BC: jax.Array | None = None


class Step(NamedTuple):
  """Where a kernel stands in its sum over blocks.

  Attributes:
    starts: whether it is the first of the sum,
    works: whether anything may be seen in it,
    ends: whether it is the last.
    seen_CS: gives the bool block, which slots which tokens see.
  """

  starts: jax.Array
  works: jax.Array
  ends: jax.Array
  seen_CS: Callable[[], jax.Array]


class Block(NamedTuple):
  """Shapes of blocks: of numbers a token, of queries, and of keys."""

  row_GS: tuple[int, ...]
  query_GKS: tuple[int, ...]
  keys_KC: tuple[int, ...]


def walk(
  kernel: Callable,
  marks: Marks,
  of_tokens: Sequence[jax.Array],
  of_slots: Sequence[jax.Array],
  out: Sequence[jax.ShapeDtypeStruct],
  scratch: Callable[[Block], Sequence[tuple[int, ...]]],
  *,
  by_token: bool,
) -> list[jax.Array]:
  """Runs a kernel over all pairs of blocks.

  Args:
    kernel: takes a `Step`, and refs of blocks of `of_tokens`, `of_slots`, `out` and
      scratch.
    marks: who sees whom.
    of_tokens: arrays [B, N, G, ..., S], the first of them queries.
    of_slots: arrays [B, N, K, C].
    out: what is made; of tokens, or of slots.
    scratch: shapes, fp32, of what is kept during a sum.
    by_token: sums over slots for each block of tokens; False the other way round.
  """
  rows, heads, group, width, tokens = of_tokens[0].shape
  wanted = _QUERIES // (group * width) // _LANES * _LANES
  token_block = _block(tokens, min(max(wanted, _LANES), _MOST))
  slot_block = _block(of_slots[0].shape[-1], _MOST)
  tokens_BMS, slots_BMC = _stacked(marks)
  # In the padding, -1 sees nothing and is seen by nobody.
  tokens_BMS = _padded(tokens_BMS, token_block, -1)
  slots_BMC = _padded(slots_BMC, slot_block, -1)
  may_BIJ = _may_see(marks, tokens_BMS, slots_BMC, token_block, slot_block)
  may = may_BIJ if by_token else may_BIJ.swapaxes(1, 2)
  outer, inner = may.shape[1:]
  first = jnp.where(may.any(axis=2), may.argmax(axis=2), inner)
  last = inner - 1 - may[:, :, ::-1].argmax(axis=2)
  reach = [x.astype(jnp.int32).reshape(-1) for x in (first, last)]

  def spec(shape, along_tokens: bool):
    """Blocks along the last axis of [B, N, ...], or of marks [B, M, ...]."""
    between = shape[2:-1] if len(shape) > 3 else shape[1:-1]
    size = token_block if along_tokens else slot_block

    def index(row, head, outer_at, inner_at, first_ref, last_ref):
      at = outer_at
      if along_tokens != by_token:
        # What is not needed is not fetched: the block stays the one before.
        row_at = row * outer + outer_at
        at = jnp.minimum(jnp.maximum(inner_at, first_ref[row_at]), last_ref[row_at])
      start = (row, head) if len(shape) > 3 else (row,)
      return (*start, *[0] * len(between), at)

    return pl.BlockSpec(
      (*[None] * (len(shape) - 1 - len(between)), *between, size), index
    )

  def body(first_ref, last_ref, tokens_ref, slots_ref, *refs):
    row, outer_at, inner_at = (pl.program_id(axis) for axis in (0, 2, 3))
    row_at = row * outer + outer_at
    slot = (inner_at if by_token else outer_at) * slot_block
    step = Step(
      inner_at == 0,
      (first_ref[row_at] <= inner_at) & (inner_at <= last_ref[row_at]),
      inner_at == inner - 1,
      lambda: _seen(marks, tokens_ref[...], slots_ref[...], slot),
    )
    kernel(step, *refs)

  arrays = [tokens_BMS, slots_BMC]
  arrays += [_padded(x, token_block, 0) for x in of_tokens]
  arrays += [_padded(x, slot_block, 0) for x in of_slots]
  along = [True, False] + [True] * len(of_tokens) + [False] * len(of_slots)
  size = token_block if by_token else slot_block
  padded = [jax.ShapeDtypeStruct((*x.shape[:-1], outer * size), x.dtype) for x in out]
  block = Block((group, token_block), (group, width, token_block), (width, slot_block))
  found = pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(rows, heads, outer, inner),
      in_specs=[spec(x.shape, by) for x, by in zip(arrays, along, strict=True)],
      out_specs=[spec(x.shape, by_token) for x in padded],
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch(block)],
    ),
    out_shape=padded,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
    ),
  )(*reach, *arrays)
  return [x[..., : y.shape[-1]] for x, y in zip(found, out, strict=True)]


def _block(size: int, most: int) -> int:
  return min(most, -(-size // _LANES) * _LANES)


def _padded(x, block: int, value: int):
  spare = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]
  return jnp.pad(x, spare, constant_values=value)


def _stacked(marks: Marks):
  """The marks of tokens [B, M, S] and of slots [B, M, C]."""
  of_tokens = (marks.last_BS, marks.segments_BS, marks.prefixes_BS, marks.nearest_BS)
  of_slots = (marks.segments_BC, marks.positions_BC)
  return (
    jnp.stack([x for x in given if x is not None], axis=1)
    for given in (of_tokens, of_slots)
  )


def _seen(marks: Marks, tokens_MS, slots_MC, first_slot):
  """bool [C, S] of a block."""
  slots_CM = slots_MC.T
  places_C1 = first_slot + jax.lax.broadcasted_iota(
    jnp.int32, (slots_CM.shape[0], 1), 0
  )
  seen_CS = slots_CM[:, :1] == tokens_MS[1:2]
  if marks.prefixes_BS is not None:
    seen_CS |= slots_CM[:, :1] == tokens_MS[2:3]
  if marks.nearest_BS is not None:
    seen_CS &= slots_CM[:, 1:] >= tokens_MS[-1:]
  return seen_CS & (places_C1 <= tokens_MS[:1])


def _may_see(marks: Marks, tokens_BMS, slots_BMC, token_block: int, slot_block: int):
  """bool [B, I, J]: False where no token of a block sees a slot of another."""
  tokens_BMIS = tokens_BMS.reshape(*tokens_BMS.shape[:2], -1, token_block)
  slots_BMJC = slots_BMC.reshape(*slots_BMC.shape[:2], -1, slot_block)
  sees_BIS = tokens_BMIS[:, 0] >= 0
  segments_BMIS = tokens_BMIS[:, 1 : 2 + (marks.prefixes_BS is not None)]
  low_BI = jnp.where(sees_BIS, segments_BMIS.min(axis=1), _FAR).min(axis=-1)
  high_BI = jnp.where(sees_BIS, segments_BMIS.max(axis=1), -_FAR).max(axis=-1)
  starts_J = jnp.arange(slots_BMJC.shape[2]) * slot_block
  may_BIJ = starts_J[None, None, :] <= tokens_BMIS[:, 0].max(axis=-1)[:, :, None]
  may_BIJ &= low_BI[:, :, None] <= slots_BMJC[:, 0].max(axis=-1)[:, None, :]
  may_BIJ &= high_BI[:, :, None] >= slots_BMJC[:, 0].min(axis=-1)[:, None, :]
  if marks.nearest_BS is not None:
    near_BI = jnp.where(sees_BIS, tokens_BMIS[:, -1], _FAR).min(axis=-1)
    may_BIJ &= near_BI[:, :, None] <= slots_BMJC[:, 1].max(axis=-1)[:, None, :]
  return may_BIJ
