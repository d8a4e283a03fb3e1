"""What an update knows of a batch before its first gradient."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tis_jax import losses
from tis_jax.advantages.shaping import overlong_filter, soft_overlong_penalty
from tis_jax.corrections import Correction
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch
from tis_jax.learner.forward import score
from tis_jax.learner.measures import batch_metrics, correction_metrics
from tis_jax.learner.microbatch import map_parts
from tis_jax.logprobs import Sampling, TokenLogprobs, agree, comparable
from tis_jax.numerics.metrics import Metrics


class Learner(NamedTuple):
  """The static part of an update; see `make_update`."""

  graph: nnx.GraphDef
  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  mesh: Mesh
  sampling: Sampling

  def score(self, params, batch: Batch) -> TokenLogprobs:
    return score(self.graph, params, batch, temperature=self.algorithm.temperature)


class Rows(NamedTuple):
  """A batch with what is known of it; None where nothing is, or not yet.

  The fields are Any because the algorithm, not their type, says which of them a step
  has made.

  Attributes:
    batch: with comparable sampler log-probs, and a mask of what may train.
    advantages: `[B]` or `[B, T]`.
    old_logp: `[B, T]` of the policy before the update.
    ref_logp: `[B, T]` of the reference policy.
    weight: `[B, T]` of the correction.
    trains: `[B, T]` bool, its mask.
    denominator: `[B]` of the mini-batch.
  """

  batch: Batch
  advantages: Any = None
  old_logp: Any = None
  ref_logp: Any = None
  weight: Any = None
  trains: Any = None
  denominator: Any = None


def prepare(
  learner: Learner, params, reference, batch: Batch, version
) -> tuple[Rows, Metrics]:
  """What is taken over the whole batch, before the first optimizer update."""
  algorithm = learner.algorithm
  batch = _comparable(learner.sampling, batch)
  rows, metrics = Rows(batch), {}
  if algorithm.overlong_filter:
    mask = overlong_filter(batch.mask, batch.finish_reasons == 1)
    rows = Rows(batch._replace(mask=mask))
  parts = algorithm.mini_batches * algorithm.micro_batches
  logp = lambda params: map_parts(
    lambda part: learner.score(params, part).logp, rows.batch, parts, learner.mesh
  )
  if algorithm.needs_reference:
    rows = rows._replace(ref_logp=logp(reference))
  if algorithm.old_logp == "recompute":
    rows = rows._replace(old_logp=logp(params))
  rewards = _shaped_rewards(algorithm, rows, batch.mask)
  if algorithm.baseline == "all":
    rows = rows._replace(advantages=_advantages(algorithm, rewards, batch, batch.mask))
  if not algorithm.late_correction:
    correction, metrics = correct(algorithm, rows, rows.old_logp, version)
    rows = rows._replace(weight=correction.weight, trains=correction.mask)
  if algorithm.baseline == "accepted":
    rows = rows._replace(advantages=_advantages(algorithm, rewards, batch, rows.trains))
  return rows, metrics | batch_metrics(batch, rewards, rows.advantages, version)


def correct(
  algorithm: Algorithm, rows: Rows, old_logp, version
) -> tuple[Correction, Metrics]:
  """The correction of these rows, and all that is reported of it."""
  batch = rows.batch
  correction = algorithm.correct(
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


def _comparable(sampling: Sampling, batch: Batch) -> Batch:
  """The batch with sampler log-probs that the learner's may be subtracted from."""
  kept = {"kept_mass": batch.kept_mass, "kept_tokens": batch.kept_tokens}
  given = {name: x is not None for name, x in kept.items()}
  if any(given.values()) and (sampling.top_k, sampling.top_p, sampling.min_p) == (
    (0, 1, 0)
  ):
    raise ValueError(
      "the batch records what sampling kept, so tokens were dropped, but `sampling` of "
      "this update drops none: make it with the sampling of the rollouts' headers"
    )
  found = comparable(sampling, batch.sampler_logp, **kept)
  # What cannot be compared is as good as missing.
  sampler_logp = jnp.where(found.present, found.sampler_logp, jnp.nan)
  if not agree(sampling, **given).processed:
    batch = batch._replace(kept_tokens=None)
  return batch._replace(sampler_logp=sampler_logp, kept_mass=None)


def _shaped_rewards(algorithm: Algorithm, rows: Rows, sampled):
  """The rewards that advantages are made of."""
  rewards = rows.batch.rewards
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


def _advantages(algorithm: Algorithm, rewards, batch: Batch, mask):
  """`[B]` or `[B, T]`, with baselines over the rows that `mask` leaves something."""
  found = losses.call_loss(
    algorithm.advantage,
    rewards=rewards,
    group_ids=batch.group_ids,
    mask=mask,
    lengths=mask.sum(axis=1),
    baseline_mask=mask.any(axis=1),
  )
  # Estimators along the tokens return their returns as well.
  return found[0] if isinstance(found, tuple) else found
