"""One learner step: a batch in, a better policy and its metrics out, in one jit."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax import losses
from tis_jax.data.shaping import overlong_filter, soft_overlong_penalty
from tis_jax.diagnostics.metrics import (
  Metrics,
  maximum,
  mean,
  merge_stacked,
  ratio,
  total,
)
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch
from tis_jax.learner.forward import score
from tis_jax.learner.measures import batch_metrics, correction_metrics, plain
from tis_jax.learner.mesh import replicated, row_sharding, row_shards
from tis_jax.learner.microbatch import map_parts, split
from tis_jax.learner.state import TrainState, abstract_state
from tis_jax.logprobs import Sampling, agree, comparable


def make_update(
  graph: nnx.GraphDef,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  sampling: Sampling | None = None,
) -> Callable:
  """Compiles `algorithm` into `update(state, batch, version) -> (state, metrics)`.

  An update scores the batch (where `old_logp` or a reference asks for it), takes
  advantages and the correction over the whole batch, and makes `epochs x mini_batches`
  optimizer updates of `micro_batches` passes each. Token losses are divided by
  denominators of the whole mini-batch, so micro-batches and shards change nothing but
  rounding. A batch of another shape compiles anew; `batch.pad` keeps it the same.

  Where a loss or a gradient is not finite, that optimizer update and those after it
  leave the state as it was, the step does not count, and `update/skipped` says how many
  there were: stop, and `save_batch` what did it.

  Args:
    graph: from `decoder_graph`; carries the activations' dtype and remat.
    algorithm: what to do.
    optimizer: the one the state was made with.
    mesh: from `make_mesh`.
    sampling: how the tokens will have been drawn and their log-probs made, of the
      rollouts' headers (any object with the attributes of `logprobs.Sampling`). None:
      from all tokens, at the algorithm's temperature.

  Returns:
    A jitted function of
      state: TrainState, donated.
      batch: Batch, in numpy or on the mesh. Its rows must divide by data x fsdp x
        mini_batches x micro_batches.
      version: int32 scalar, this policy's version; staleness is counted from it.
      reference: parameters of the reference policy, if `algorithm.needs_reference`.
    that returns the new state and a dict of fp32 scalars, with one exception:
    "weight_histogram" holds `raw` and `applied`, `[K]` counts, and `edges`, `[K + 1]`.

  Raises:
    ValueError: now, where log-probs made like `sampling` cannot be compared with the
      learner's; at the first batch, where it lacks what the comparison needs.
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
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(graph, optimizer, mesh))
  learner = _Learner(graph, algorithm, optimizer, mesh, sampling)
  arguments = (shardings, row_sharding(mesh), replicated(mesh))
  if algorithm.needs_reference:
    arguments += (shardings.params,)

    def update(state, batch, version, reference):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return learner.update(state, batch, version, reference)
  else:

    def update(state, batch, version):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return learner.update(state, batch, version, None)

  return jax.jit(
    update,
    in_shardings=arguments,
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )


class _Rows(NamedTuple):
  """A batch with what is known of it before the gradient's pass; None where nothing."""

  batch: Batch
  advantages: jax.Array | None = None
  old_logp: jax.Array | None = None
  ref_logp: jax.Array | None = None
  weight: jax.Array | None = None
  trains: jax.Array | None = None
  denominator: jax.Array | None = None


class _Learner(NamedTuple):
  """The static part of an update; its methods are functions of arrays."""

  graph: nnx.GraphDef
  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  mesh: Mesh
  sampling: Sampling

  def update(self, state: TrainState, batch: Batch, version, reference):
    """The whole learner step: `(state, metrics)`."""
    self._check_rows(batch)
    batch = self._comparable(batch)
    rows, metrics = self._prepare(state.params, reference, batch, version)
    key, next_key = jax.random.split(state.key)

    def epoch(carry, key):
      deal, key = jax.random.split(key)
      dealt = self._deal(rows, deal)
      parts = split(dealt, self.algorithm.mini_batches, self.mesh)
      keys = jax.random.split(key, self.algorithm.mini_batches)
      step = lambda carry, xs: self._optimize(carry, *xs, version)
      return jax.lax.scan(step, carry, (parts, keys))

    carry = (state.params, state.opt_state, jnp.array(True))
    carry, found = jax.lax.scan(
      epoch, carry, jax.random.split(key, self.algorithm.epochs)
    )
    params, opt_state, healthy = carry
    key = jnp.where(healthy, next_key, state.key)
    state = TrainState(params, opt_state, state.step + healthy, key)
    # Stacked twice, by epochs and mini-batches.
    found = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), found)
    return state, plain(metrics | merge_stacked(found))

  def _check_rows(self, batch):
    rows, algorithm = batch.rewards.shape[0], self.algorithm
    parts = row_shards(self.mesh) * algorithm.mini_batches * algorithm.micro_batches
    if rows % parts:
      raise ValueError(
        f"a batch of {rows} rows does not divide by {parts}: {row_shards(self.mesh)} "
        f"devices of rows x {algorithm.mini_batches} mini-batches x "
        f"{algorithm.micro_batches} micro-batches"
      )

  def _comparable(self, batch: Batch) -> Batch:
    """The batch with sampler log-probs that the learner's may be subtracted from."""
    masses = {"kept_mass": batch.kept_mass, "kept_tokens": batch.kept_tokens}
    found = comparable(self.sampling, batch.sampler_logp, **masses)
    # What cannot be compared is as good as missing.
    sampler_logp = jnp.where(found.present, found.sampler_logp, jnp.nan)
    given = {name: x is not None for name, x in masses.items()}
    if not agree(self.sampling, **given).processed:
      batch = batch._replace(kept_tokens=None)
    return batch._replace(sampler_logp=sampler_logp, kept_mass=None)

  def _prepare(self, params, reference, batch: Batch, version) -> tuple[_Rows, Metrics]:
    """What is taken over the whole batch, before the first optimizer update."""
    algorithm = self.algorithm
    rows, metrics = _Rows(batch), {}
    if algorithm.overlong_filter:
      mask = overlong_filter(batch.mask, batch.finish_reasons == 1)
      rows = _Rows(batch._replace(mask=mask))
    parts = algorithm.mini_batches * algorithm.micro_batches
    scored = lambda params: map_parts(
      lambda part: self._score(params, part).logp, rows.batch, parts, self.mesh
    )
    if algorithm.needs_reference:
      rows = rows._replace(ref_logp=scored(reference))
    if algorithm.old_logp == "recompute":
      rows = rows._replace(old_logp=scored(params))
    rewards = self._shaped_rewards(rows, batch.mask)
    if algorithm.baseline == "all":
      rows = rows._replace(advantages=self._advantages(rewards, batch, batch.mask))
    if not algorithm.late_correction:
      correction, metrics = self._correct(rows, rows.old_logp, version)
      rows = rows._replace(weight=correction.weight, trains=correction.mask)
    if algorithm.baseline == "kept":
      rows = rows._replace(advantages=self._advantages(rewards, batch, rows.trains))
    return rows, metrics | batch_metrics(batch, rewards, rows.advantages, version)

  def _shaped_rewards(self, rows: _Rows, sampled):
    """The rewards that advantages are made of."""
    algorithm, rewards = self.algorithm, rows.batch.rewards
    if algorithm.overlong_buffer:
      rewards += soft_overlong_penalty(
        sampled.sum(axis=1),
        max_length=sampled.shape[1],
        buffer=algorithm.overlong_buffer,
        factor=algorithm.overlong_factor,
      )
    if algorithm.needs_reference and algorithm.kl_placement == "reward":
      kl = losses.kl_penalty(
        rows.old_logp, rows.ref_logp, algorithm.kl_kind, rows.batch.mask
      )
      rewards -= algorithm.kl_coefficient * kl.sum(axis=1)
    return rewards

  def _advantages(self, rewards, batch, mask):
    """`[B]` or `[B, T]`, with baselines over the rows that `mask` leaves something."""
    found = losses.call_loss(
      self.algorithm.advantage,
      rewards=rewards,
      group_ids=batch.group_ids,
      mask=mask,
      lengths=mask.sum(axis=1),
      baseline_mask=mask.any(axis=1),
    )
    # Estimators along the tokens return their returns as well.
    return found[0] if isinstance(found, tuple) else found

  def _score(self, params, batch):
    return score(self.graph, params, batch, temperature=self.algorithm.temperature)

  def _correct(self, rows: _Rows, old_logp, version):
    batch = rows.batch
    correction = self.algorithm.correct(
      old_logp,
      batch.sampler_logp,
      batch.mask,
      group_ids=batch.group_ids,
      advantages=rows.advantages,
      versions=batch.versions,
      learner_version=version,
      rewards=batch.rewards,
    )
    return correction, correction_metrics(correction, batch, old_logp)

  def _deal(self, rows: _Rows, key):
    """The rows as one epoch takes them."""
    if not self.algorithm.shuffle or self.algorithm.mini_batches == 1:
      return rows
    order = jax.random.permutation(key, rows.batch.rewards.shape[0])
    return jax.tree.map(lambda x: x[order], rows)

  def _optimize(self, carry, rows: _Rows, key, version):
    """One optimizer update on one mini-batch: `(carry, metrics)`."""
    params, opt_state, healthy = carry
    if self.algorithm.denominator == "sampled":
      rows = rows._replace(denominator=self._denominator(rows, rows.batch.mask))
    elif rows.trains is not None:
      rows = rows._replace(denominator=self._denominator(rows, rows.trains))
    differentiate = jax.value_and_grad(self._loss, has_aux=True)

    def micro_batch(carry, xs):
      (_, found), gradients = differentiate(params, *xs, version)
      return jax.tree.map(jnp.add, carry, gradients), found

    parts = split(rows, self.algorithm.micro_batches, self.mesh)
    keys = jax.random.split(key, self.algorithm.micro_batches)
    gradients, (terms, metrics) = jax.lax.scan(
      micro_batch, jax.tree.map(jnp.zeros_like, params), (parts, keys)
    )
    # Micro-batches divide by the mini-batch's denominators, so their losses add up.
    terms = {f"loss/{name}": x.sum() for name, x in terms.items()}
    norm = optax.global_norm(gradients)
    healthy &= jnp.isfinite(norm) & jnp.isfinite(terms["loss/total"])
    updates, new_opt_state = self.optimizer.update(gradients, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(healthy, new, old), new, (params, opt_state)
    )
    metrics = merge_stacked(metrics) | {x: ratio(terms[x], 1.0) for x in terms}
    metrics |= {
      "optimizer/grad_norm": ratio(norm, 1.0),
      "optimizer/grad_norm_max": maximum(norm, jnp.array(True)),
      "update/skipped": total(~healthy),
    }
    return (params, opt_state, healthy), metrics

  def _denominator(self, rows: _Rows, counted):
    grouped = self.algorithm.aggregation == "prompt_mean"
    return losses.denominators(
      counted,
      self.algorithm.aggregation,
      group_ids=rows.batch.group_ids if grouped else None,
      length=self.algorithm.length,
    )

  def _loss(self, params, rows: _Rows, key, version):
    """The share of the mini-batch's loss that these rows have: `(loss, found)`."""
    algorithm, batch, metrics = self.algorithm, rows.batch, {}
    out = self._score(params, batch)
    current = jax.lax.stop_gradient(out.logp)
    weight, trains, denominator = rows.weight, rows.trains, rows.denominator
    if algorithm.late_correction:
      correction, metrics = self._correct(rows, current, version)
      weight, trains = correction.weight, correction.mask
      if denominator is None:
        denominator = self._denominator(rows, trains)
    # A missing sampler log-prob gives the ratio 1.
    sampler_logp = jnp.where(jnp.isnan(batch.sampler_logp), current, batch.sampler_logp)
    old_logp = {
      "recompute": rows.old_logp,
      "current": current,
      "sampler": sampler_logp,
    }[algorithm.old_logp]
    token_loss, found = losses.call_loss(
      algorithm.loss,
      logp=out.logp,
      old_logp=old_logp,
      sampler_logp=sampler_logp,
      advantages=rows.advantages,
      mask=trains,
      key=key,
    )
    summed = lambda x: losses.aggregate(x, trains, denominator=denominator)
    policy = summed(token_loss * weight)
    entropy_loss, entropy = losses.entropy_loss(out.entropy, batch.mask)
    terms = {"policy": policy, "total": policy}
    if algorithm.entropy_coefficient:
      terms["entropy"] = algorithm.entropy_coefficient * summed(entropy_loss)
      terms["total"] += terms["entropy"]
    if algorithm.needs_reference:
      kl, found_kl = self._kl(out.logp, rows.ref_logp, sampler_logp, trains)
      metrics |= found_kl
      if algorithm.kl_placement == "loss":
        terms["kl"] = algorithm.kl_coefficient * summed(kl)
        terms["total"] += terms["kl"]
    return terms["total"], (terms, metrics | found | entropy)

  def _kl(self, logp, ref_logp, sampler_logp, mask):
    """`(penalty_BT, metrics)` of the KL to the reference."""
    kind = self.algorithm.kl_kind
    if self.algorithm.kl_weighted:
      kl = losses.weighted_kl_penalty(logp, ref_logp, sampler_logp, kind, mask)
    else:
      kl = losses.kl_penalty(logp, ref_logp, kind, mask)
    reported = losses.kl_penalty(logp, ref_logp, "k3", mask)
    return kl, {"kl/reference": mean(jax.lax.stop_gradient(reported), mask)}
