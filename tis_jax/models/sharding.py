"""Where parameters and activations lie on a (data, fsdp, tensor) mesh."""

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

# Trailing axes of each parameter; a stacked layer axis in front is never split.
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
  """

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
