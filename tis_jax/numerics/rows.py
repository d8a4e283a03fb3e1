"""Many sums over each row in one walk along the tokens."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CHUNK = 1 << 17


class Rows(NamedTuple):
  """What to take over each row: dicts of `[B, T]` in, of `[B, 1]` out."""

  total: dict[str, jax.Array]
  largest: dict[str, jax.Array]
  smallest: dict[str, jax.Array]


def by_row(features: Callable[..., Rows], *arrays: jax.Array) -> Rows:
  """Reduces `features(*arrays)` over T, in one walk.

  Args:
    features: makes the arrays to reduce, token by token.
    *arrays: `[B, T]` each. T must not be sharded; B may be.

  Returns:
    `Rows` of `[B, 1]`.
  """
  return walk(lambda *arrays: _reduce(features(*arrays)), _combine, *arrays)


def walk(reduce: Callable, combine: Callable, *arrays: jax.Array):
  """`reduce(*arrays)`, on a CPU by chunks along T whose results `combine` joins.

  On CPU, XLA writes out the input of every reduction. Thirty of them over a large batch
  fill 100 MB, and most of the time goes into fresh memory pages; so the walk goes by
  chunks that stay in cache. Accelerators fuse sibling reductions by themselves.

  Args:
    reduce: from `[B, t]` arrays to a pytree whose shapes do not depend on t.
    combine: joins the results of two chunks.
    *arrays: `[B, T]` each. T must not be sharded; B may be.
  """
  batch, length = arrays[0].shape
  chunk = max(_CHUNK // max(batch, 1), 128)
  if chunk >= length:
    return reduce(*arrays)

  def in_chunks(*arrays):
    def at(start, size):
      parts = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in arrays)
      return reduce(*parts)

    done = length // chunk
    result = jax.lax.fori_loop(
      1, done, lambda i, found: combine(found, at(i * chunk, chunk)), at(0, chunk)
    )
    rest = length - done * chunk
    return combine(result, at(done * chunk, rest)) if rest else result

  return jax.lax.platform_dependent(*arrays, cpu=in_chunks, default=reduce)


def _reduce(rows: Rows) -> Rows:
  def over(reduce, features):
    return {name: reduce(x, axis=1, keepdims=True) for name, x in features.items()}

  return Rows(
    over(jnp.sum, rows.total),
    over(jnp.max, rows.largest),
    over(jnp.min, rows.smallest),
  )


def _combine(a: Rows, b: Rows) -> Rows:
  return Rows(
    {name: x + b.total[name] for name, x in a.total.items()},
    {name: jnp.maximum(x, b.largest[name]) for name, x in a.largest.items()},
    {name: jnp.minimum(x, b.smallest[name]) for name, x in a.smallest.items()},
  )
