"""Sums and means over groups of rows, for any group ids, in jit, on any mesh.

Comparing every row's id with every other's stands in for the sort or the segment sum,
which would need the number of groups or an unsharded batch axis. The comparison goes
block by block, so that it never stands in memory as a whole.

Inside a `shard_map` a shard sees its own rows only: keep the rows of a group together.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard
from jax.typing import ArrayLike

_BLOCK = 1024


def group_sum(
  values: ArrayLike, group_ids: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
  """The sum over each row's group, given to every row of that group.

  Args:
    values: `[B]`, or `[B, T]` for a sum at each position.
    group_ids: `[B]` integers, any values, in any order; equal ids make a group.
    where: `[B]` bool, rows that count; None counts all. Values elsewhere may be NaN.

  Returns:
    fp32 in the shape of values.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> group_sum(jnp.array([1.0, 2.0, 3.0]), jnp.array([7, -1, 7])).tolist()
  [4.0, 2.0, 4.0]
  """
  values = jnp.asarray(values).astype(jnp.float32)
  group_ids = as_group_ids(group_ids, values.shape[0])
  counted = _counted(where, group_ids)
  if values.ndim == 1:
    add = lambda total, same, x, _: total + jnp.where(same, x[None, :], 0.0).sum(-1)
    return _over_blocks(add, 0.0, group_ids, values, counted)
  # A product with the mask would spread NaN from rows that do not count.
  values = jnp.where(counted[:, None], values, 0.0)
  same = group_ids[:, None] == replicate(group_ids)[None, :]
  return jnp.dot(same.astype(jnp.float32), replicate(values), precision="highest")


def group_count(group_ids: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
  """`[B]` fp32: how many rows of each row's group count.

  >>> import jax.numpy as jnp
  >>> group_count(jnp.array([7, -1, 7])).tolist()
  [2.0, 1.0, 2.0]
  """
  return group_sum(jnp.ones(jnp.shape(group_ids), jnp.float32), group_ids, where)


def max_of_others(
  values: ArrayLike, group_ids: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
  """`[B]` fp32: the largest value among a row's siblings; -inf where it has none.

  >>> import jax.numpy as jnp
  >>> max_of_others(jnp.array([1.0, 2.0, 3.0]), jnp.array([7, -1, 7])).tolist()
  [3.0, -inf, 1.0]
  """
  values = jnp.asarray(values).astype(jnp.float32)
  group_ids = as_group_ids(group_ids, values.shape[0])
  row = jnp.arange(values.shape[0])

  def larger(largest, same, x, column):
    others = same & (row[:, None] != column[None, :])
    return jnp.maximum(largest, jnp.where(others, x[None, :], -jnp.inf).max(-1))

  counted = _counted(where, group_ids)
  return _over_blocks(larger, -jnp.inf, group_ids, values, counted)


def group_mean(
  values: ArrayLike, group_ids: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
  """`[B]` fp32: the mean over each row's group; 0 where no row of it counts.

  >>> import jax.numpy as jnp
  >>> group_mean(jnp.array([1.0, 2.0, 3.0]), jnp.array([7, -1, 7])).tolist()
  [2.0, 2.0, 2.0]
  """
  count = jnp.maximum(group_count(group_ids, where), 1.0)
  mean = group_sum(values, group_ids, where) / count
  # The mean of equal values comes out equal to them: what the sum's rounding left, an
  # estimator that divides by the spread would blow up to an advantage.
  return mean + group_sum(values - mean, group_ids, where) / count


def replicate(x):
  """`x` on every device of an Explicit mesh; elsewhere the compiler decides."""
  mesh = jax.typeof(x).sharding.mesh
  if AxisType.Explicit in mesh.axis_types:
    return reshard(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))
  return x


def as_group_ids(group_ids, rows):
  """The ids as an array; refuses any that are not one integer a row."""
  group_ids = jnp.asarray(group_ids)
  if group_ids.shape != (rows,) or not jnp.issubdtype(group_ids.dtype, jnp.integer):
    raise ValueError(
      f"group_ids must be [B] = ({rows},) integers, "
      f"got {group_ids.dtype}{list(group_ids.shape)}"
    )
  return group_ids


def _counted(where, group_ids):
  if where is None:
    return jnp.ones_like(group_ids, bool)
  return jnp.asarray(where) != 0


def _over_blocks(fold, start, group_ids, values, counted):
  """Folds blocks of rows, as columns, into one number for every row.

  `fold(result, same, values, positions)` gets which of the block's rows count for each
  row, `[B, block]`, and the block's values and positions, `[block]`.
  """
  rows = group_ids.shape[0]
  result = jnp.full_like(values, start)
  columns = (group_ids, values, counted, jnp.arange(rows))
  columns = jax.tree.map(replicate, columns)

  def step(result, columns):
    ids, values, counted, positions = columns
    same = (group_ids[:, None] == ids[None, :]) & counted[None, :]
    return fold(result, same, values, positions), None

  if rows <= _BLOCK:
    return step(result, columns)[0]
  # Padding counts for nothing: `counted` is padded with False.
  pad = lambda x: jnp.pad(x, (0, -rows % _BLOCK)).reshape(-1, _BLOCK)
  return jax.lax.scan(step, result, jax.tree.map(pad, columns))[0]
