"""A learner of several processes, one a host: the same program, its rows, its shards.

Every process runs the same updates in the same order over one mesh of all devices. None
holds a whole batch or a whole parameter: it puts its own rows into a batch, checkpoints
and publishes the shards that its devices hold, and reads those back.
"""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tis_jax.learner.batch import Batch
from tis_jax.learner.mesh import make_mesh, row_sharding
from tis_jax.models import params_sharding
from tis_jax.store import Block, Blocks


def join_processes(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  seconds: int = 100,
) -> None:
  """Makes this process one of `count`; call it before anything else of JAX's.

  On CPUs the processes talk through gloo. Signals stay the caller's: JAX does not take
  a SIGTERM for a notice of preemption.

  Args:
    coordinator: HOST:PORT that process 0 listens at. None leaves all three to JAX,
      which finds out itself on TPU pods, under Slurm (one process a device), Open MPI
      and Kubernetes.
    count: of processes.
    index: of this one, from 0.
    seconds: without a sign of life from a process, after which JAX ends the others, and
      for which the first to end waits for the last.

  Raises:
    RuntimeError: JAX has computed before, or the processes do not find each other.
    ValueError: JAX does not find out itself.
  """
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    coordinator,
    count,
    index,
    # Slurm's part in it would be to give each process the first device of its host.
    cluster_detection_method=None if coordinator is None else "deactivate",
    heartbeat_timeout_seconds=seconds,
    shutdown_timeout_seconds=seconds,
  )


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


def whole(array: jax.Array) -> np.ndarray:
  """An array that lies on the devices of all processes, on the host of each.

  >>> import jax.numpy as jnp
  >>> whole(jnp.ones(2))
  array([1., 1.], dtype=float32)
  """
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def params_here(params: nnx.State, keep: bool) -> nnx.State | None:
  """Params of a mesh of all processes, on the devices of this one alone.

  They are gathered array by array, so that a device never holds two of them whole.

  Args:
    params: on a mesh of all processes, each of which calls this.
    keep: whether this process is to have them.

  Returns:
    Params as they lie over the devices of one host; None where none were to be kept.
  """
  here = params_sharding(params, local_mesh())

  def place(x, sharding):
    gathered = whole(x)
    return jax.device_put(gathered, sharding) if keep else None

  found = jax.tree.map(place, params, here)
  return found if keep else None


def local_mesh() -> Mesh:
  """Of the devices of this process, params split over all of them."""
  return make_mesh(data=1, fsdp=-1, devices=jax.local_devices())


def _places(array: jax.Array) -> list[tuple[slice, ...]]:
  """Which part of an array each device of all processes holds."""
  return list(array.sharding.devices_indices_map(array.shape).values())


def _start(index: tuple[slice, ...]) -> tuple[int, ...]:
  return tuple(part.start or 0 for part in index)
