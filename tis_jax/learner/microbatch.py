"""Cutting a batch into parts that keep every row on its device, and back."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tis_jax.learner.mesh import ROWS


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
