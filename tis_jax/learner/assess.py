"""What is taken over a whole batch before its first gradient."""

from tis_jax import losses
from tis_jax.advantages import overlong_filter, soft_overlong_penalty
from tis_jax.corrections import Correction
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch
from tis_jax.learner.learner import Learner
from tis_jax.learner.measures import batch_metrics, correction_metrics
from tis_jax.learner.microbatch import map_parts
from tis_jax.learner.rows import CHAIN_ARGUMENTS, Rows
from tis_jax.learner.support import comparable_batch, support_chain, support_metrics
from tis_jax.numerics.metrics import Metrics


def assess(
  learner: Learner, params, reference, batch: Batch, version
) -> tuple[Rows, Metrics]:
  """What is taken over the whole batch, before the first optimizer update."""
  algorithm = learner.algorithm
  recorded = batch
  batch, exact = comparable_batch(learner.sampling, batch, algorithm.inexact)
  rows, metrics = Rows(batch), {}
  if algorithm.overlong.filter:
    mask = overlong_filter(batch.mask, batch.finish_reasons == 1)
    rows = Rows(batch._replace(mask=mask))
  support = support_metrics(recorded, exact, rows.batch.mask)
  if algorithm.inexact == "reject":
    rows = rows._replace(exact=exact)
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
  metrics |= support | batch_metrics(batch, rewards, rows.advantages, version)
  return rows, metrics


def correct(
  algorithm: Algorithm, rows: Rows, old_logp, version
) -> tuple[Correction, Metrics]:
  """The correction of these rows, and all that is reported of it."""
  batch = rows.batch
  told = {name: of(rows, version) for name, of in CHAIN_ARGUMENTS.items()}
  corrector = algorithm.correct
  if rows.exact is not None:
    corrector, told["present"] = support_chain(corrector), rows.exact
  correction = corrector(old_logp, batch.sampler_logp, batch.mask, **told)
  return correction, correction_metrics(correction, batch, old_logp)


def _shaped_rewards(algorithm: Algorithm, rows: Rows, sampled):
  """The rewards that advantages are made of."""
  rewards = rows.batch.rewards
  if algorithm.overlong.buffer:
    rewards += soft_overlong_penalty(
      sampled.sum(axis=1),
      max_length=sampled.shape[1],
      buffer=algorithm.overlong.buffer,
      factor=algorithm.overlong.factor,
    )
  if algorithm.needs_reference and algorithm.kl.placement == "reward":
    kl = losses.kl_penalty(
      rows.old_logp, rows.ref_logp, algorithm.kl.kind, rows.batch.mask
    )
    rewards -= algorithm.kl.coefficient * kl.sum(axis=1)
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
