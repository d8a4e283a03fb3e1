"""What a learner carries from step to step, and where it lies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.mesh import replicated
from tis_jax.models import abstract_params, params_sharding
from tis_jax.models.params import config_of


class TrainState(NamedTuple):
  """The learner's state; a pytree, donated to every update.

  Attributes:
    params: `nnx.State`, the fp32 master copy. The decoder casts them to the dtype of
      its activations where it uses them.
    opt_state: of the optax optimizer.
    step: int32 scalar, batches trained on.
    key: PRNG key; split at every update.
    healthy: bool scalar; False once a loss or a gradient was not finite, and then no
      update changes anything until somebody sets it True again.
  """

  params: nnx.State
  opt_state: Any
  step: jax.Array
  key: jax.Array
  healthy: jax.Array


def init_state(
  params: nnx.State, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> TrainState:
  """A fresh state on the mesh: step 0, an empty optimizer, fp32 master params.

  Args:
    params: of a `Decoder`, any float dtype, on any device; left untouched.
    optimizer: optax.
    key: PRNG key.
    mesh: from `make_mesh`.

  Returns:
    TrainState laid out by `state_sharding`, in buffers of its own.
  """
  abstract = jax.eval_shape(lambda p, k: _fresh(p, k, optimizer), params, key)
  shardings = state_sharding(abstract, optimizer, mesh)
  # A copy, because the first update donates it and the caller may still use `params`.
  params = jax.device_put(params, shardings.params, may_alias=False)
  key = jax.device_put(key, shardings.key, may_alias=False)
  fresh = jax.jit(_fresh, static_argnums=2, out_shardings=shardings)
  return fresh(params, key, optimizer)


def abstract_state(
  graph: nnx.GraphDef, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Shapes, dtypes and shardings of a decoder's state, without allocating it.

  Args:
    graph: from `decoder_graph`.
    optimizer: optax.
    mesh: from `make_mesh`.

  Returns:
    TrainState of `jax.ShapeDtypeStruct`: what to restore a checkpoint into, or to lower
    an update for.
  """
  shapes = jax.eval_shape(
    lambda p: _fresh(p, jax.random.key(0), optimizer), abstract_params(config_of(graph))
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    state_sharding(shapes, optimizer, mesh),
  )


def state_sharding(
  state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """A `NamedSharding` for each leaf: the optimizer's moments lie where parameters do.

  Args:
    state: a TrainState, or its `jax.eval_shape`.
    optimizer: the one that made `state.opt_state`.
    mesh: from `make_mesh`.
  """
  params = params_sharding(state.params, mesh)
  whole: Any = replicated(mesh)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer.init,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: whole,
  )
  return TrainState(params, opt_state, whole, whole, whole)


def _fresh(params, key, optimizer):
  params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
  step, healthy = jnp.zeros((), jnp.int32), jnp.ones((), bool)
  return TrainState(params, optimizer.init(params), step, key, healthy)
