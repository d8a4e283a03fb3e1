"""The device mesh: rows over data and fsdp, parameters over fsdp and tensor."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tis_jax.models.sharding import ROWS

AXES = ("data", "fsdp", "tensor")


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  *,
  devices=None,
) -> Mesh:
  """A mesh with the axes data, fsdp and tensor, over all devices.

  Args:
    data: devices along which whole replicas lie; -1 takes what the others leave.
    fsdp: devices along which parameters and rows are split; -1 likewise.
    tensor: devices along which heads, MLP width and vocabulary are split; -1 likewise.
    devices: which devices, all of JAX's by default.

  Returns:
    A Mesh of Auto axes: the compiler places what the learner does not.

  Raises:
    ValueError: two axes are -1, or the sizes do not multiply to the number of devices.

  >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
  {'data': 1, 'fsdp': 1, 'tensor': 1}
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(f"only one mesh axis may be -1, got {sizes}")
  bad = [name for name, size in sizes.items() if size < 1 and size != -1]
  if bad:
    raise ValueError(f"mesh axes must be positive or -1, got {sizes}")
  given = 1
  for size in sizes.values():
    given *= abs(size)
  if len(devices) % given or (not free and given != len(devices)):
    raise ValueError(
      f"a mesh of {sizes} does not fit {len(devices)} devices; set one axis to -1 to "
      "let it take what is left"
    )
  for name in free:
    sizes[name] = len(devices) // given
  shape = tuple(sizes[axis] for axis in AXES)
  return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of `[B, ...]` arrays: rows over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh) -> int:
  """How many parts the rows of a batch are split into.

  >>> row_shards(make_mesh(devices=jax.devices()[:1]))
  1
  """
  return mesh.shape["data"] * mesh.shape["fsdp"]
