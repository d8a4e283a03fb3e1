"""Attention of long rows, without an array of every token by every other.

Letters in names: B rows, S new tokens, C slots to attend to, Q queries and J slots of a
block, N key heads, G query heads a key head, K head width.
"""

import jax
import jax.numpy as jnp

from tis_jax.models.layers import MASKED, Near
from tis_jax.models.precision import multiply

_MOST = 2**22
_QUERIES = 512
_SLOTS = 1024


def is_long(tokens: int, slots: int) -> bool:
  """Whether so many queries by slots are taken in blocks: from about 2,048 squared.

  >>> is_long(2048, 2048), is_long(16_384, 16_384), is_long(1, 1_000_000)
  (False, True, False)
  """
  return tokens * slots > _MOST


def sees(segments_BS, prefixes_BS, segments_BC):
  """`[B, S, C]` bool: whether a slot is of a token's segment, or of its prefix.

  >>> sees(jnp.array([[2]]), jnp.array([[1]]), jnp.array([[0, 1, 2, 3]])).tolist()
  [[[False, True, True, False]]]
  """
  seen_BSC = segments_BS[:, :, None] == segments_BC[:, None, :]
  if prefixes_BS is None:
    return seen_BSC
  prefixes_BS1 = jnp.where(prefixes_BS == 0, segments_BS, prefixes_BS)[:, :, None]
  return seen_BSC | (prefixes_BS1 == segments_BC[:, None, :])


def attend_in_blocks(
  query_BSNGK,
  keys_BCNK,
  values_BCNK,
  places_BS,
  segments_BS,
  segments_BC,
  prefixes_BS=None,
  near: Near | None = None,
):
  """What `attend` computes, in blocks of 512 queries by 1,024 slots.

  The softmax is taken online: of the slots so far are kept their largest logit m, the
  sum of exp(logit - m), and the values weighted by it. Forward and backward need memory
  for one block of logits, and for the running numbers of one block of queries; the
  gradient is that of the same sums, taken again.

  Args:
    query_BSNGK: rotated queries, grouped by the key head they share.
    keys_BCNK: rotated keys.
    values_BCNK: values.
    places_BS: int32, the last slot that each token may look at.
    segments_BS: int32, the segment of each token, 0 for padding.
    segments_BC: int32, the segment of each slot; a token looks at its own.
    prefixes_BS: int32, a further one that it looks at, 0 for none.
    near: a `Near`, outside of which a token sees nothing; None for everything.

  Returns:
    [B, S, N, G, K] in the dtype of the queries; 0 of a token that sees nothing.

  Source: Rabe and Staats 2021 (arXiv 2112.05682), which sums online over blocks of
  keys; Milakov and Gimelshein 2018 (arXiv 1805.02867) for the running maximum.

  Example:
    >>> x = jnp.eye(2).reshape(1, 2, 1, 2)
    >>> one = jnp.ones((1, 2), jnp.int32)
    >>> out = attend_in_blocks(x[:, :, :, None], x, x, jnp.array([[0, 1]]), one, one)
    >>> [[round(float(v), 2) for v in row] for row in out.reshape(2, 2)]
    [[1.0, 0.0], [0.33, 0.67]]
  """
  rows, tokens = query_BSNGK.shape[:2]
  places = near and near.positions_BS
  queries = (query_BSNGK, places_BS, segments_BS, prefixes_BS, places)
  blocks = jax.tree.map(lambda x: _split(x, _QUERIES), queries)
  slots = (keys_BCNK, values_BCNK, segments_BC, near and near.positions_BC)
  slots = jax.tree.map(lambda x: _split(x, _SLOTS), slots)
  first = jnp.arange(slots[2].shape[0]) * slots[2].shape[2]

  @jax.checkpoint
  def block(_, queries):
    return None, _over_slots(queries, (*slots, first), near and near.width)

  _, out = jax.lax.scan(block, None, blocks)
  out = out.swapaxes(0, 1).reshape(rows, -1, *query_BSNGK.shape[2:])
  return out[:, :tokens]


def _split(x, size: int):
  """[B, S, ...] as [blocks, B, size, ...], padded with zeros."""
  size = min(size, x.shape[1])
  spare = [(0, 0)] * x.ndim
  spare[1] = (0, -x.shape[1] % size)
  x = jnp.pad(x, spare)
  return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


def _over_slots(queries, slots, width):
  query_BQNGK, places_BQ, segments_BQ, prefixes_BQ, positions_BQ = queries
  dtype = query_BQNGK.dtype
  scale = query_BQNGK.shape[-1] ** -0.5
  query_BNGQK = query_BQNGK.transpose(0, 2, 3, 1, 4)

  @jax.checkpoint
  def add(carry, block):
    keys_BJNK, values_BJNK, segments_BJ, positions_BJ, first = block

    def seen(carry):
      peak_BNGQ, total_BNGQ, mixed_BNGQK = carry
      slots_J = first + jnp.arange(segments_BJ.shape[1])
      mask_BQJ = slots_J[None, None, :] <= places_BQ[:, :, None]
      if width is not None:
        mask_BQJ &= positions_BQ[:, :, None] - positions_BJ[:, None, :] < width
      mask_BQJ &= sees(segments_BQ, prefixes_BQ, segments_BJ)
      mask_BQJ &= (segments_BQ != 0)[:, :, None]
      mask = mask_BQJ[:, None, None]
      logits = multiply("bngqk,bjnk->bngqj", query_BNGQK, keys_BJNK.astype(dtype))
      logits = jnp.where(mask, logits * scale, MASKED)
      # The result does not depend on what is taken out, so no gradient goes there.
      new_BNGQ = jax.lax.stop_gradient(jnp.maximum(peak_BNGQ, logits.max(axis=-1)))
      shrink_BNGQ = jnp.exp(peak_BNGQ - new_BNGQ)
      weights = jnp.where(mask, jnp.exp(logits - new_BNGQ[..., None]), 0.0)
      more = multiply(
        "bngqj,bjnk->bngqk", weights.astype(dtype), values_BJNK.astype(dtype)
      )
      total_BNGQ = total_BNGQ * shrink_BNGQ + weights.sum(axis=-1)
      return new_BNGQ, total_BNGQ, mixed_BNGQK * shrink_BNGQ[..., None] + more

    # Slots that come later than all of the block's tokens are half of a causal square;
    # those before all of their windows are most of a long row.
    unseen = first > places_BQ.max()
    if width is not None:
      unseen |= positions_BQ.min() - positions_BJ.max() >= width
    return jax.lax.cond(unseen, lambda carry: carry, seen, carry), None

  shape = query_BNGQK.shape
  start = (
    jnp.full(shape[:-1], MASKED, jnp.float32),
    jnp.zeros(shape[:-1], jnp.float32),
    jnp.zeros(shape, jnp.float32),
  )
  (_, total_BNGQ, mixed_BNGQK), _ = jax.lax.scan(add, start, slots)
  # A sum of nothing is divided by 1.
  total_BNGQ = jnp.where(total_BNGQ > 0, total_BNGQ, 1.0)
  out_BNGQK = mixed_BNGQK / total_BNGQ[..., None]
  return out_BNGQK.transpose(0, 3, 1, 2, 4).astype(dtype)
