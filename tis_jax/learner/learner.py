"""The parts of a learner that stay the same from step to step."""

from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch
from tis_jax.learner.forward import score, values
from tis_jax.learner.packing import Packing
from tis_jax.learner.state import TrainState, abstract_state, init_state
from tis_jax.logprobs import Sampling, TokenLogprobs
from tis_jax.models import LoRA, adapt, critic_graph


class Learner(NamedTuple):
  """What an update is compiled from.

  Attributes:
    graph: of the decoder, from `decoder_graph`.
    algorithm: what an update does.
    optimizer: of the updates.
    mesh: where they run, from `make_mesh`.
    sampling: how the tokens were drawn and their log-probs made.
    critic_optimizer: of the critic's updates; None without a critic.
    lora: which adapters are trained; None where all params are.
    base: params under the adapters, inside an update.
  """

  graph: nnx.GraphDef
  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  mesh: Mesh
  sampling: Sampling
  critic_optimizer: optax.GradientTransformation | None = None
  lora: LoRA | None = None
  base: nnx.State | None = None

  def score(
    self,
    params: nnx.State,
    batch: Batch,
    packing: Packing | None = None,
    *,
    sum_squared_probs: bool = False,
    candidates: bool = False,
    replay: bool = True,
  ) -> TokenLogprobs:
    """The learner's own log-probs of a batch, or of what a pass of it holds.

    Under LoRA, params are the adapter's. `replay` is for what is trained: a reference
    has its own experts.
    """
    if self.lora is not None:
      assert self.base is not None, "`make_update` gives it"
      params = adapt(self.base, params, self.lora)
    return score(
      self.graph,
      params,
      batch,
      packing,
      temperature=self.algorithm.temperature,
      sum_squared_probs=sum_squared_probs,
      candidates=candidates,
      replay=replay and self.algorithm.replay_experts,
    )

  def values(
    self, params: nnx.State, batch: Batch, packing: Packing | None = None
  ) -> jax.Array:
    """The critic's values of a batch, or of what a pass of it holds."""
    return values(critic_graph(self.graph), params, batch, packing)

  def fresh_state(self, params: nnx.State, seed: int) -> TrainState:
    """The state at step 0."""
    return init_state(
      params,
      self.optimizer,
      jax.random.key(seed),
      self.mesh,
      critic_optimizer=self.critic_optimizer,
    )

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, to restore into."""
    return abstract_state(
      self.graph,
      self.optimizer,
      self.mesh,
      critic_optimizer=self.critic_optimizer,
      lora=self.lora,
    )
