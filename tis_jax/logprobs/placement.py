"""Where arrays lie: token chunks, contractions and vocab shards, on any mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.logprobs.plan import Inputs


def scan_tokens(
  chunk: Callable, carry, per_token, hidden: jax.Array, token_block: int
) -> tuple:
  """`chunk(carry, part) -> (carry, out)` over parts of at most `token_block` tokens.

  Cuts one leading axis that is not sharded, the last for choice, and never merges
  axes: both would fail on an Explicit mesh. Leaves of `per_token` and of the outputs
  begin with the leading axes of `hidden`.
  """
  leading = hidden.shape[:-1]
  tokens = math.prod(leading)
  axis = _free_axis(hidden)
  if tokens <= token_block or axis is None:
    return chunk(carry, per_token)
  widest = max(1, token_block // (tokens // leading[axis]))
  length = math.ceil(leading[axis] / math.ceil(leading[axis] / widest))
  count = leading[axis] // length

  def split(x):
    x = lax.slice_in_dim(x, 0, count * length, axis=axis)
    shape = (*x.shape[:axis], count, length, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], count * length, *x.shape[axis + 2 :])

  carry, out = lax.scan(chunk, carry, jax.tree.map(split, per_token))
  out = jax.tree.map(join, out)
  if count * length < leading[axis]:
    rest = jax.tree.map(
      lambda x: lax.slice_in_dim(x, count * length, None, axis=axis), per_token
    )
    carry, last = chunk(carry, rest)
    out = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), out, last)
  return carry, out


def contract_tokens(lhs: jax.Array, rhs: jax.Array, precision) -> jax.Array:
  """`[..., M], [..., N] -> [M, N]` fp32, summed over every token on every shard."""
  axes = tuple(range(lhs.ndim - 1))
  mesh = jax.typeof(lhs).sharding.mesh
  out_sharding = None
  if _is_explicit(mesh):
    # A contraction over sharded axes must say where the result goes.
    out_sharding = NamedSharding(mesh, PartitionSpec(None, None))
  return lax.dot_general(
    lhs,
    rhs,
    ((axes, axes), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
    out_sharding=out_sharding,
  )


def vocab_placement(
  head: jax.Array, vocab_dim: int, vocab_axis: str | tuple[str, ...] | None
) -> tuple[tuple[str, ...], jax.sharding.AbstractMesh | None]:
  """The mesh axes that shard the vocabulary, and their mesh; `((), None)` for none.

  An Explicit mesh knows; on an Auto mesh the caller has to say.
  """
  sharding = jax.typeof(head).sharding
  mesh = sharding.mesh
  if vocab_axis is None:
    axes = _axes_of(sharding.spec, vocab_dim)
  else:
    axes = (vocab_axis,) if isinstance(vocab_axis, str) else tuple(vocab_axis)
  if axes and mesh.empty:
    mesh = jax.sharding.get_abstract_mesh()
  if axes and mesh.empty and isinstance(head, jax.Array):
    placed = None if isinstance(head, jax.core.Tracer) else head.sharding
    if isinstance(placed, NamedSharding):
      mesh = placed.mesh.abstract_mesh
  missing = [name for name in axes if name not in mesh.axis_names]
  if missing:
    raise ValueError(
      f"vocab_axis {missing[0]!r} is not an axis of the current mesh"
      f" {tuple(mesh.axis_names)}; call inside jax.set_mesh(mesh)"
    )
  if math.prod(mesh.shape[name] for name in axes) == 1:
    return (), None
  return axes, mesh


def align(inputs: Inputs, vocab_dim: int, vocab_axes: tuple[str, ...]) -> Inputs:
  """On an Explicit mesh, placements that the kernels can work with; else no change.

  Features and tokens give up the axes that the vocabulary is sharded over, features
  give up all (FSDP gathers the head here), and every per-token array lies as `hidden`
  does. The transpose of each move puts the gradients back.
  """
  mesh = jax.typeof(inputs.hidden).sharding.mesh
  if not _is_explicit(mesh):
    return inputs

  def keep(names):
    names = (names,) if isinstance(names, str) else names or ()
    kept = tuple(name for name in names if name not in vocab_axes)
    return kept or None

  def place(x, *names) -> Any:
    if x is None:
      return None
    return jax.reshard(x, NamedSharding(mesh, PartitionSpec(*names)))

  spec = jax.typeof(inputs.hidden).sharding.spec
  tokens = tuple(keep(names) for names in spec[:-1])
  vocab = vocab_axes or None
  return Inputs(
    hidden=place(inputs.hidden, *tokens, None),
    head=place(inputs.head, *((None, vocab) if vocab_dim else (vocab, None))),
    bias=place(inputs.bias, vocab),
    targets=place(inputs.targets, *tokens),
    temperature=place(inputs.temperature, *tokens),
    kept=place(inputs.kept, *tokens, None),
    candidates=place(inputs.candidates, *tokens, None),
  )


def _free_axis(hidden: jax.Array) -> int | None:
  spec = jax.typeof(hidden).sharding.spec
  free = [axis for axis in range(hidden.ndim - 1) if not _axes_of(spec, axis)]
  return max(free, key=lambda axis: (hidden.shape[axis] > 1, axis)) if free else None


def _axes_of(spec, axis: int) -> tuple[str, ...]:
  names = spec[axis] if axis < len(spec) else None
  return (names,) if isinstance(names, str) else tuple(names or ())


def _is_explicit(mesh) -> bool:
  return any(kind == AxisType.Explicit for kind in mesh.axis_types)
