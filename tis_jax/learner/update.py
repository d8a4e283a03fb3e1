"""One learner step: a batch in, a better policy and its metrics out, in one jit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.assess import assess
from tis_jax.learner.batch import Batch
from tis_jax.learner.gradient import optimize
from tis_jax.learner.learner import Learner
from tis_jax.learner.measures import plain
from tis_jax.learner.mesh import replicated, row_sharding
from tis_jax.learner.microbatch import check_rows, split
from tis_jax.learner.packing import PackedBatch
from tis_jax.learner.rows import Rows
from tis_jax.learner.state import TrainState
from tis_jax.logprobs import Sampling, agree, truncates
from tis_jax.losses import traits
from tis_jax.models import LoRA
from tis_jax.numerics.metrics import merge_stacked


def make_update(
  graph: nnx.GraphDef,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  sampling: Sampling | None = None,
  critic_optimizer: optax.GradientTransformation | None = None,
  lora: LoRA | None = None,
) -> Callable:
  """Compiles `algorithm` into `update(state, batch, version) -> (state, metrics)`.

  An update scores the batch (where `old_logp` or a reference asks for it), takes
  advantages and the correction over the whole batch, and makes `epochs x mini_batches`
  optimizer updates of `micro_batches` passes each. Token losses are divided by
  denominators of the whole mini-batch, so micro-batches and shards change nothing but
  rounding. A batch of another shape compiles anew; `batch.pad` keeps it the same.

  Where a loss or a gradient is not finite, that optimizer update leaves the state as it
  was but for `healthy`, which is False from then on: neither it nor any later update
  counts, also one that was dispatched before anybody had read the metrics, and
  `update/skipped` says how many there were. Stop, and `save_batch` what did it.

  Args:
    graph: from `decoder_graph`; carries the activations' dtype and remat.
    algorithm: what to do.
    optimizer: the one the state was made with.
    mesh: from `make_mesh`.
    sampling: how the tokens will have been drawn and their log-probs made, of the
      rollouts' headers (any object with the attributes of `logprobs.Sampling`). None:
      from all tokens, at the algorithm's temperature.
    critic_optimizer: the one the state's critic was made with, if
      `algorithm.needs_critic`.
    lora: which adapters are trained, beside params that stay as they are; None trains
      all params.

  Returns:
    A jitted function of
      state: TrainState, donated.
      batch: Batch, or PackedBatch from `pack`, in numpy or on the mesh. Its rows must
        divide by data x fsdp x mini_batches x micro_batches.
      version: int32 scalar, this policy's version; staleness is counted from it.
      reference: parameters of the reference policy, if `algorithm.needs_reference`;
        under LoRA an adapter, too.
      base: under LoRA, the params beside which the adapters stand, on the mesh.
    that returns the new state and a dict of fp32 scalars, with one exception:
    "weight_histogram" holds `raw` and `applied`, `[K]` counts, and `edges`, `[K + 1]`.

  Raises:
    ValueError: now, where log-probs made like `sampling` cannot be compared with the
      learner's, a critic has no optimizer, or stands beside adapters; at the first
      batch, where it lacks what the comparison needs.
  """
  if sampling is None:
    sampling = Sampling(temperature=algorithm.temperature)
  if (agreed := agree(sampling, kept_mass=True, kept_tokens=True).temperature) != (
    algorithm.temperature
  ):
    raise ValueError(
      f"the sampler draws at temperature {agreed} and algorithm.temperature is "
      f"{algorithm.temperature}: the ratio of two temperatures is no policy's ratio"
    )
  if algorithm.score_centering and algorithm.inexact == "train" and truncates(sampling):
    raise ValueError(
      "score_centering needs the law that each token was drawn from, which "
      "inexact='train' goes without; take inexact='reject'"
    )
  if algorithm.needs_critic != (critic_optimizer is not None):
    name = traits(algorithm.advantage).name
    raise ValueError(
      f"{name} takes the values of a critic: give make_update and init_state its "
      "critic_optimizer"
      if algorithm.needs_critic
      else f"{name} takes no values, so there is no critic for a critic_optimizer"
    )
  if lora is not None and critic_optimizer is not None:
    raise ValueError(
      "a critic is a decoder of its own, all of which trains, and LoRA is there to "
      "train little: take an advantage without values, or no adapters"
    )
  learner = Learner(graph, algorithm, optimizer, mesh, sampling, critic_optimizer, lora)
  shardings = jax.tree.map(lambda x: x.sharding, learner.abstract_state())
  arguments: tuple = (shardings, row_sharding(mesh), replicated(mesh))
  further = []
  if algorithm.needs_reference:
    arguments += (shardings.params,)
    further.append("reference")
  if lora is not None:
    # In whatever precision and place it is.
    arguments += (None,)
    further.append("base")

  def update(state, batch, version, *given):
    frozen = dict(zip(further, given, strict=True))
    whole = learner._replace(base=frozen.get("base"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return _update(whole, state, batch, version, frozen.get("reference"))

  return jax.jit(
    update,
    in_shardings=arguments,
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )


def _update(
  learner: Learner, state: TrainState, given: Batch | PackedBatch, version, reference
):
  """The whole learner step: `(state, metrics)`."""
  algorithm = learner.algorithm
  batch, packing = given if isinstance(given, PackedBatch) else (given, None)
  check_rows(
    batch.rewards.shape[0],
    algorithm.mini_batches,
    algorithm.micro_batches,
    learner.mesh,
  )
  if isinstance(given, PackedBatch):
    _check_packing(learner, given)
    packing = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), packing)
  if algorithm.score_centering and batch.top_tokens is None:
    raise ValueError(
      "score_centering needs the sampler's most probable tokens, which the rollouts do "
      "not record; have them recorded with sampler.top_logprobs"
    )
  if not algorithm.replay_experts:
    batch = batch._replace(routed_experts=None)
  elif batch.routed_experts is None:
    raise ValueError(
      "replay_experts needs the experts that the sampler sent tokens to, which the "
      "rollouts do not record; have them recorded with sampler.routed_experts"
    )
  critic = None if state.critic is None else state.critic.params
  rows, metrics = assess(
    learner, state.params, critic, reference, batch, packing, version
  )
  key, next_key = jax.random.split(state.key)

  def epoch(carry, key):
    deal, key = jax.random.split(key)
    dealt = _deal(rows, deal) if algorithm.shuffle else rows
    parts = split((dealt, packing), algorithm.mini_batches, learner.mesh)
    keys = jax.random.split(key, algorithm.mini_batches)

    def step(carry, xs):
      (rows, packing), key = xs
      return optimize(learner, carry, rows, packing, key, version)

    return jax.lax.scan(step, carry, (parts, keys))

  carry = (state.params, state.opt_state, state.critic, state.healthy)
  carry, found = jax.lax.scan(epoch, carry, jax.random.split(key, algorithm.epochs))
  params, opt_state, critic, healthy = carry
  key = jnp.where(healthy, next_key, state.key)
  state = TrainState(params, opt_state, state.step + healthy, key, healthy, critic)
  # Stacked twice, by epochs and mini-batches.
  found = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), found)
  return state, plain(metrics | merge_stacked(found))


def _check_packing(learner: Learner, given: PackedBatch) -> None:
  algorithm = learner.algorithm
  if algorithm.replay_experts:
    raise ValueError("replay_experts=True takes padded rows; give the plain batch")
  if algorithm.shuffle:
    raise ValueError(
      "rows are packed for the mini-batches that they stand in, and shuffle=True deals "
      "them anew; give the plain batch, or take shuffle=False"
    )
  passes, mini = algorithm.micro_batches, algorithm.mini_batches
  rows, *parts, length = given.packing.tokens.shape
  padded, response = given.batch.tokens.shape
  prompt = given.batch.prompts.shape[1] - 1
  most = padded // (passes * mini) * (prompt + response)
  if parts != [passes, mini] or rows * length > most:
    raise ValueError(
      f"packed rows {given.packing.tokens.shape} are not the (R, {passes}, {mini}, L) "
      f"of this update, R x L at most {most}: pack the batch with its own algorithm "
      "and mesh"
    )


def _deal(rows: Rows, key) -> Rows:
  """The rows in another order."""
  order = jax.random.permutation(key, rows.batch.rewards.shape[0])
  return jax.tree.map(lambda x: x[order], rows)
