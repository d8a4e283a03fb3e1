"""Where parameters and activations lie on a (data, fsdp, tensor) mesh."""

import math

import jax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Rows of a batch lie over both: an fsdp device holds a slice of the parameters and
# gathers the rest, but works on rows of its own.
ROWS = ("data", "fsdp")

# Trailing axes of each parameter; axes of layers and experts in front are never split.
_AXES = {
  "embedding": ("tensor", "fsdp"),
  "output": ("fsdp", "tensor"),
  "query": ("fsdp", "tensor", None, None),
  "key": ("fsdp", "tensor", None),
  "value": ("fsdp", "tensor", None),
  "out": ("tensor", None, None, "fsdp"),
  "query_bias": ("tensor", None, None),
  "key_bias": ("tensor", None),
  "value_bias": ("tensor", None),
  "gate": ("fsdp", "tensor"),
  "up": ("fsdp", "tensor"),
  "down": ("tensor", "fsdp"),
  "router": ("fsdp", None),
  "expert_gate": ("fsdp", "tensor"),
  "expert_up": ("fsdp", "tensor"),
  "expert_down": ("tensor", "fsdp"),
}


def params_sharding(params: nnx.State, mesh: jax.sharding.Mesh) -> nnx.State:
  """A `NamedSharding` for each parameter: heads and MLP over tensor, width over fsdp.

  An axis that the mesh lacks, or that does not divide the dimension (nine heads over
  two devices), leaves that dimension whole. Norms are replicated.

  Args:
    params: parameters, or `abstract_params`.
    mesh: with any of the axes "data", "fsdp", "tensor".

  Returns:
    The tree of `params` with shardings for leaves.

  Raises:
    ValueError: an axis of the mesh is Explicit.

  Example:
    >>> from tis_jax.models import DecoderConfig, abstract_params, flatten
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> auto = (AxisType.Auto, AxisType.Auto)
    >>> mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=auto)
    >>> shardings = flatten(params_sharding(abstract_params(config), mesh))
    >>> tuple(shardings["layers/mlp/down"].spec)
    (None, 'tensor', 'fsdp')
  """
  if AxisType.Explicit in mesh.axis_types:
    raise ValueError(
      f"the decoder leaves the placement of its activations to the compiler: make the "
      f"mesh {dict(mesh.shape)} with axis_types=(jax.sharding.AxisType.Auto,) * "
      f"{len(mesh.shape)}"
    )

  def place(name, leaf):
    axes = _AXES.get(name, ())
    axes = (None,) * (leaf.ndim - len(axes)) + axes
    fits = (
      axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(axes, leaf.shape, strict=True)
    )
    return NamedSharding(mesh, PartitionSpec(*fits))

  placed = []
  for path, variable in nnx.to_flat_state(params):
    leaves = jax.tree.map(lambda x, name=path[-1]: place(name, x), variable.get_value())
    placed.append((path, variable.replace(leaves)))
  return nnx.from_flat_state(placed)


def constrain(x, *axes):
  """Asks the compiler to split the leading dimensions of `x` so, and the rest not.

  Rows stay over (data, fsdp): left alone, the compiler may follow the params, split the
  width of the residual stream over fsdp, and sum activations where it should gather
  params.

  Args:
    x: array.
    *axes: for each leading dimension the name, or a tuple of names, of mesh axes.

  Returns:
    x; constrained only where a mesh is set (`jax.set_mesh`), has the axes, and they
    divide the dimension.
  """
  spec = [fitting(names, size) for names, size in zip(axes, x.shape, strict=False)]
  if not any(spec):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def fitting(names, size: int) -> tuple[str, ...] | None:
  """Those of the mesh axes that are set, or None where they do not divide `size`."""
  mesh = jax.sharding.get_abstract_mesh()
  names = (names,) if isinstance(names, str) else names
  names = tuple(name for name in names if name in mesh.shape)
  devices = math.prod(mesh.shape[name] for name in names)
  return names if size % devices == 0 else None
