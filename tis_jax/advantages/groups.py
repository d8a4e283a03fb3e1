"""Sums and means over groups of rows, for any group ids, in jit, on any mesh.

A `[B, B]` comparison of ids stands in for the sort or the segment sum, which would need
the number of groups or an unsharded batch axis. XLA fuses it into the reduction; at
B = 8192 it costs what one 8192-wide matrix-vector product costs.

Inside a `shard_map` a shard sees its own rows only: keep the rows of a group together.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard


def group_sum(values, group_ids, where=None):
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
  values, same = _grouped(values, group_ids, where)
  if values.ndim == 1:
    return jnp.where(same, values[None, :], 0.0).sum(-1)
  # A product with the mask would spread NaN from rows that do not count.
  values = values if where is None else jnp.where(_column(where), values, 0.0)
  return jnp.dot(same.astype(jnp.float32), replicate(values), precision="highest")


def group_count(group_ids, where=None):
  """`[B]` fp32: how many rows of each row's group count.

  >>> import jax.numpy as jnp
  >>> group_count(jnp.array([7, -1, 7])).tolist()
  [2.0, 1.0, 2.0]
  """
  return group_sum(jnp.ones(jnp.shape(group_ids), jnp.float32), group_ids, where)


def max_of_others(values, group_ids, where=None):
  """`[B]` fp32: the largest value among a row's siblings; -inf where it has none.

  >>> import jax.numpy as jnp
  >>> max_of_others(jnp.array([1.0, 2.0, 3.0]), jnp.array([7, -1, 7])).tolist()
  [3.0, -inf, 1.0]
  """
  values, same = _grouped(values, group_ids, where)
  row = jnp.arange(values.shape[0])
  same &= row[:, None] != row[None, :]
  return jnp.where(same, values[None, :], -jnp.inf).max(-1)


def group_mean(values, group_ids, where=None):
  """`[B]` fp32: the mean over each row's group; 0 where no row of it counts.

  >>> import jax.numpy as jnp
  >>> group_mean(jnp.array([1.0, 2.0, 3.0]), jnp.array([7, -1, 7])).tolist()
  [2.0, 2.0, 2.0]
  """
  count = jnp.maximum(group_count(group_ids, where), 1.0)
  return group_sum(values, group_ids, where) / count


def replicate(x):
  """`x` on every device of an Explicit mesh; elsewhere the compiler decides."""
  mesh = jax.typeof(x).sharding.mesh
  if AxisType.Explicit in mesh.axis_types:
    return reshard(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))
  return x


def check_group_ids(group_ids, rows):
  """The ids as an array; refuses any that are not one integer a row."""
  group_ids = jnp.asarray(group_ids)
  if group_ids.shape != (rows,) or not jnp.issubdtype(group_ids.dtype, jnp.integer):
    raise ValueError(
      f"group_ids must be [B] = ({rows},) integers, "
      f"got {group_ids.dtype}{list(group_ids.shape)}"
    )
  return group_ids


def _grouped(values, group_ids, where):
  """`(values for the columns, [B, B] which columns count for which row)`."""
  values = jnp.asarray(values).astype(jnp.float32)
  group_ids = check_group_ids(group_ids, values.shape[0])
  same = group_ids[:, None] == replicate(group_ids)[None, :]
  if where is not None:
    same = same & replicate(jnp.asarray(where) != 0)[None, :]
  return replicate(values) if values.ndim == 1 else values, same


def _column(mask):
  return (jnp.asarray(mask) != 0)[:, None]
