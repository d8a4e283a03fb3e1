"""From `[B, T]` to packed rows and back, inside an update."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tis_jax.learner.microbatch import map_parts, scan_first, split
from tis_jax.learner.packing import Packing
from tis_jax.learner.rows import Rows


def to_packed(x, packing: Packing):
  """What `x` `[B, T, ...]` says of the token that each slot predicts, `[R, L, ...]`.

  A slot that predicts none gets what the first token has.
  """
  flat = x.reshape(-1, *x.shape[2:])
  return flat[jnp.maximum(packing.targets, 0)]


def to_padded(x, packing: Packing, shape: tuple[int, ...]):
  """What the slots say of the tokens they predict, `[B, T, ...]`; 0 of all others."""
  number = shape[0] * shape[1]
  # Beyond the end, so that it is dropped.
  targets = jnp.where(packing.targets < 0, number, packing.targets)
  zeros = jnp.zeros((number, *x.shape[2:]), x.dtype)
  return zeros.at[targets].set(x, mode="drop").reshape(*shape, *x.shape[2:])


def rows_in(rows: Rows, packing: Packing) -> Rows:
  """The rows of a mini-batch with nothing left in those that a pass does not hold."""
  shape = rows.batch.mask.shape
  held = to_padded(jnp.ones(packing.targets.shape, bool), packing, shape)
  held = held.any(axis=1)[:, None]
  rows = rows._replace(batch=rows.batch._replace(mask=rows.batch.mask & held))
  if rows.trains is not None:
    rows = rows._replace(trains=rows.trains & held)
  if rows.critic is not None:
    critic = rows.critic._replace(mask=rows.critic.mask & held)
    rows = rows._replace(critic=critic)
  return rows


def used_passes(passes: Packing):
  """How many of a mini-batch's passes, `[passes, R, L]`, hold anything."""
  return jnp.any(passes.segments != 0, axis=(1, 2)).sum()


def map_packed(function, batch, packing: Packing, mini: int, micro: int, mesh: Mesh):
  """`function(batch, pass)` of all rows, one pass at a time; memory of one pass.

  Args:
    function: returns `[B, T]` arrays of a mini-batch, 0 where a pass holds nothing.
    batch: all rows.
    packing: of all mini-batches.
    mini: mini-batches.
    micro: passes of each, at most.
    mesh: where it runs.
  """

  def one(part):
    batch, packing = part
    passes = split(packing, micro, mesh)
    shapes = jax.eval_shape(function, batch, jax.tree.map(lambda x: x[0], passes))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, packing):
      return jax.tree.map(jnp.add, total, function(batch, packing)), ()

    return scan_first(used_passes(passes), add, zeros, passes)[0]

  return map_parts(one, (batch, packing), mini, mesh)
