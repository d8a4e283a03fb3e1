"""What a learner carries from step to step, and where it lies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.mesh import replicated
from tis_jax.models import (
  LoRA,
  abstract_adapter,
  abstract_params,
  critic_params,
  params_sharding,
)
from tis_jax.models.params import config_of


class CriticState(NamedTuple):
  """The critic beside a policy.

  Attributes:
    params: `nnx.State` of a `Critic`, the fp32 master copy.
    opt_state: of its own optax optimizer.
  """

  params: nnx.State
  opt_state: Any


class TrainState(NamedTuple):
  """The learner's state; a pytree, donated to every update.

  Attributes:
    params: `nnx.State`, the fp32 master copy of what is trained: the decoder's, or the
      adapter's alone. The decoder casts them to the dtype of its activations where it
      uses them.
    opt_state: of the optax optimizer, of what is trained.
    step: int32 scalar, batches trained on.
    key: PRNG key; split at every update.
    healthy: bool scalar; False once a loss or a gradient was not finite, and then no
      update changes anything until somebody sets it True again.
    critic: `CriticState`; None without one.
  """

  params: nnx.State
  opt_state: Any
  step: jax.Array
  key: jax.Array
  healthy: jax.Array
  critic: CriticState | None = None


def init_state(
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  mesh: Mesh,
  *,
  critic_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
  """A fresh state on the mesh: step 0, an empty optimizer, fp32 master params.

  Args:
    params: of a `Decoder`, or an adapter (`init_adapter`), any float dtype, on any
      device; left untouched.
    optimizer: optax.
    key: PRNG key.
    mesh: from `make_mesh`.
    critic_optimizer: optax; a critic is then started from `params`, its values at 0.

  Returns:
    TrainState laid out by `state_sharding`, in buffers of its own.
  """
  optimizers = (optimizer, critic_optimizer)
  abstract = jax.eval_shape(lambda p, k: _fresh(p, k, *optimizers), params, key)
  shardings = state_sharding(abstract, optimizer, mesh, critic_optimizer)
  params, key = placed((params, key), (shardings.params, shardings.key))
  fresh = jax.jit(_fresh, static_argnums=(2, 3), out_shardings=shardings)
  return fresh(params, key, *optimizers)


def abstract_state(
  graph: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  critic_optimizer: optax.GradientTransformation | None = None,
  lora: LoRA | None = None,
) -> TrainState:
  """Shapes, dtypes and shardings of a decoder's state, without allocating it.

  Args:
    graph: from `decoder_graph`.
    optimizer: optax.
    mesh: from `make_mesh`.
    critic_optimizer: optax, where there is a critic.
    lora: which adapters are trained; None where all params are.

  Returns:
    TrainState of `jax.ShapeDtypeStruct`: what to restore a checkpoint into, or to lower
    an update for.
  """
  config = config_of(graph)
  trained = abstract_adapter(config, lora) if lora else abstract_params(config)
  shapes = jax.eval_shape(
    lambda p: _fresh(p, jax.random.key(0), optimizer, critic_optimizer), trained
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    state_sharding(shapes, optimizer, mesh, critic_optimizer),
  )


def state_sharding(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  critic_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
  """A `NamedSharding` for each leaf: the optimizer's moments lie where parameters do.

  Args:
    state: a TrainState, or its `jax.eval_shape`.
    optimizer: the one that made `state.opt_state`.
    mesh: from `make_mesh`.
    critic_optimizer: likewise of `state.critic`.
  """
  whole: Any = replicated(mesh)

  def place(trained, optimizer):
    params = params_sharding(trained.params, mesh)
    opt_state = optax.tree_utils.tree_map_params(
      optimizer.init,
      lambda _, sharding: sharding,
      trained.opt_state,
      params,
      transform_non_params=lambda _: whole,
    )
    return CriticState(params, opt_state)

  critic = None
  if critic_optimizer is not None:
    critic = place(state.critic, critic_optimizer)
  return TrainState(*place(state, optimizer), whole, whole, whole, critic)


def placed(tree, shardings):
  """A tree that every process has, copied to where it lies on a mesh of all of them.

  A copy, because the first update donates it and the caller may still use the tree.

  Args:
    tree: of arrays.
    shardings: a tree of them, or one for all.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings, may_alias=False)

  def place(x, sharding):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding))
    # A device that this process does not have takes its part from the one that does.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def _fresh(params, key, optimizer, critic_optimizer):
  copy = lambda x: jnp.array(x, jnp.float32)
  critic = None
  if critic_optimizer is not None:
    critic = jax.tree.map(copy, critic_params(params))
    critic = CriticState(critic, critic_optimizer.init(critic))
  params = jax.tree.map(copy, params)
  step, healthy = jnp.zeros((), jnp.int32), jnp.ones((), bool)
  return TrainState(params, optimizer.init(params), step, key, healthy, critic)
