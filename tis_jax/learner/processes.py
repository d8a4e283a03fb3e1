"""A learner of several processes, one a host: the same program, its rows, its shards.

Every process runs the same updates in the same order over one mesh of all devices. None
holds a whole batch or a whole parameter: it puts its own rows into a batch, checkpoints
and publishes the shards that its devices hold, and reads those back.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from tis_jax.learner.batch import Batch
from tis_jax.learner.mesh import row_sharding
from tis_jax.store import Block, Blocks


def join_processes(coordinator: str, count: int, index: int) -> None:
  """Makes this process one of `count`; call it before anything else of JAX's.

  On CPUs the processes talk through gloo. Where JAX finds out about its processes
  itself (TPU pods, Slurm), `jax.distributed.initialize()` is all there is to call.

  Args:
    coordinator: HOST:PORT that process 0 listens at.
    count: of processes.
    index: of this one, from 0.
  """
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(coordinator, count, index)


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
  """Which rows of a batch the devices of this process hold, in their order.

  Args:
    mesh: from `make_mesh`.
    rows: of the whole batch; must divide over data x fsdp.

  >>> from tis_jax.learner import make_mesh
  >>> local_rows(make_mesh(devices=jax.devices()[:1]), 4).tolist()
  [0, 1, 2, 3]
  """
  held = row_sharding(mesh).addressable_devices_indices_map((rows,)).values()
  numbers = np.arange(rows)
  return np.unique(np.concatenate([numbers[index] for index in held]))


def assemble(batch: Batch, mesh: Mesh, rows: int) -> Batch:
  """The whole batch on the mesh, of the rows that this process has.

  Args:
    batch: the rows that `local_rows` names. Group ids must be those of the whole batch.
    mesh: from `make_mesh`.
    rows: of the whole batch.

  Raises:
    ValueError: other rows than those of this process.
  """
  mine = len(local_rows(mesh, rows))
  if len(batch.rewards) != mine:
    raise ValueError(
      f"process {jax.process_index()} holds {mine} of {rows} rows and was given "
      f"{len(batch.rewards)}: take those of local_rows(mesh, {rows})"
    )
  sharding = row_sharding(mesh)

  def place(x):
    x = np.asarray(x)
    shape = (rows, *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x, shape)

  return jax.tree.map(place, batch)


def local_blocks(params: Mapping[str, jax.Array]) -> dict[str, Blocks]:
  """The shards of params that this process publishes: each of them once in all.

  Args:
    params: by name, from `models.flatten`; on a mesh of all processes.

  Returns:
    Blocks by name, for `Store.publish_blocks`.

  >>> import jax.numpy as jnp
  >>> (block,) = local_blocks({"w": jnp.ones((2, 3))})["w"].held
  >>> block.start, block.values.shape
  ((0, 0), (2, 3))
  """
  found = {}
  for number, (name, array) in enumerate(params.items()):
    starts = sorted({_start(x) for x in _places(array)})
    replicas = len(_places(array)) // len(starts)
    # Replicas take turns: the first one's shards may all lie on one host.
    found[name] = [
      shard
      for shard in array.addressable_shards
      if shard.replica_id == (number + starts.index(_start(shard.index))) % replicas
    ]
    for shard in found[name]:
      shard.data.copy_to_host_async()
  return {
    name: Blocks(
      params[name].shape,
      params[name].dtype.name,
      tuple(Block(_start(x.index), np.asarray(x.data)) for x in shards),
    )
    for name, shards in found.items()
  }


def _places(array: jax.Array) -> list[tuple[slice, ...]]:
  """Which part of an array each device of all processes holds."""
  return list(array.sharding.devices_indices_map(array.shape).values())


def _start(index: tuple[slice, ...]) -> tuple[int, ...]:
  return tuple(part.start or 0 for part in index)
