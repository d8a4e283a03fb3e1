"""Cutting a batch into parts that keep every row on its device, and back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tis_jax.learner.mesh import row_shards
from tis_jax.models.sharding import ROWS


def check_rows(rows: int, mini: int, micro: int, mesh: Mesh) -> None:
  """Refuses a number of rows that does not divide by devices, mini- and micro-batches.

  Raises:
    ValueError: with the numbers.
  """
  shards = row_shards(mesh)
  if rows == 0 or rows % (shards * mini * micro):
    raise ValueError(
      f"a batch of {rows} rows does not divide by {shards * mini * micro}: {shards} "
      f"devices of rows x {mini} mini-batches x {micro} micro-batches"
    )


def split(tree, parts: int, mesh: Mesh):
  """`[B, ...]` arrays as `[parts, B / parts, ...]`: part i takes rows i, i + parts, ...

  Strided parts, not blocks: each device then holds an equal share of every part from
  the start, and nothing moves.

  >>> from tis_jax.learner.mesh import make_mesh
  >>> mesh = make_mesh(devices=jax.devices()[:1])
  >>> split(jax.numpy.arange(6), 2, mesh).tolist()
  [[0, 2, 4], [1, 3, 5]]
  """
  pinned = NamedSharding(mesh, PartitionSpec(None, ROWS))

  def one(x):
    x = x.reshape((x.shape[0] // parts, parts, *x.shape[1:])).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, pinned)

  return jax.tree.map(one, tree)


def join(tree, mesh: Mesh):
  """The inverse of `split`."""
  pinned = NamedSharding(mesh, PartitionSpec(ROWS))

  def one(x):
    x = x.swapaxes(0, 1)
    x = x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))
    return jax.lax.with_sharding_constraint(x, pinned)

  return jax.tree.map(one, tree)


def map_parts(function, tree, parts: int, mesh: Mesh):
  """`function` of all rows, computed one part at a time; memory of one part."""
  if parts == 1:
    return function(tree)
  return join(jax.lax.map(function, split(tree, parts, mesh)), mesh)


def scan_first(
  count, step: Callable, carry, xs, unread: Callable = lambda shapes: shapes
):
  """`lax.scan` over the first `count` parts of `xs`, which may be traced.

  Args:
    count: int32 scalar.
    step: `step(carry, x) -> (carry, y)`.
    carry: to begin with.
    xs: the parts along the leading axis.
    unread: makes of a tree of shapes what stands for y in the parts that are not run.

  >>> def step(total, x):
  ...   return total + x, total
  >>> fill = lambda shape: jnp.full(shape.shape, -1, shape.dtype)
  >>> found = scan_first(2, step, 0, jnp.array([3, 4, 5]), fill)
  >>> int(found[0]), found[1].tolist()
  (7, [0, 3, -1])
  """
  at = lambda i: jax.tree.map(lambda x: x[i], xs)
  parts = jax.tree.leaves(xs)[0].shape[0]
  shapes = jax.eval_shape(lambda carry: step(carry, at(0))[1], carry)
  stacked = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (parts, *x.shape)), unread(shapes)
  )

  def body(i, state):
    carry, stacked = state
    carry, found = step(carry, at(i))
    return carry, jax.tree.map(lambda to, x: to.at[i].set(x), stacked, found)

  return jax.lax.fori_loop(0, count, body, (carry, stacked))
