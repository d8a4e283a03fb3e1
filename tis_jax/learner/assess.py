"""What is taken over a whole batch before its first gradient."""

from tis_jax import losses
from tis_jax.advantages import overlong_filter, soft_overlong_penalty
from tis_jax.corrections import Correction
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch
from tis_jax.learner.learner import Learner
from tis_jax.learner.measures import (
  batch_metrics,
  correction_metrics,
  critic_metrics,
)
from tis_jax.learner.microbatch import map_parts
from tis_jax.learner.packed_rows import map_packed
from tis_jax.learner.packing import Packing
from tis_jax.learner.rows import CHAIN_ARGUMENTS, Rows, Targets
from tis_jax.learner.support import comparable_batch, support_chain, support_metrics
from tis_jax.numerics.metrics import Metrics
from tis_jax.numerics.units import turn_ids
from tis_jax.rollouts import LENGTH


def assess(
  learner: Learner,
  params,
  critic,
  reference,
  batch: Batch,
  packing: Packing | None,
  version,
) -> tuple[Rows, Metrics]:
  """What is taken over the whole batch, before the first optimizer update.

  Args:
    learner: the statics.
    params: of the policy.
    critic: params of the critic, if the algorithm has one.
    reference: params of the reference policy, if it has one.
    batch: all rows of the step.
    packing: their packed rows, if the model takes those.
    version: int32 scalar.
  """
  algorithm = learner.algorithm
  recorded = batch
  batch, exact = comparable_batch(learner.sampling, batch, algorithm.inexact)
  rows, metrics = Rows(batch), {}
  if algorithm.overlong.filter:
    mask = overlong_filter(batch.mask, batch.finish_reasons == LENGTH)
    rows = Rows(batch._replace(mask=mask))
  support = support_metrics(recorded, exact, rows.batch.mask)
  if algorithm.inexact == "reject":
    rows = rows._replace(exact=exact)
  mini, micro = algorithm.mini_batches, algorithm.micro_batches

  def in_parts(function):
    # Rows that an overlong filter leaves out of the loss count in a baseline.
    if packing is None:
      return map_parts(function, batch, mini * micro, learner.mesh)
    return map_packed(function, batch, packing, mini, micro, learner.mesh)

  def read(params, **how):
    def one(*part):
      out = learner.score(params, *part, **how)
      return out.logp, out.sum_squared_probs

    return in_parts(one)

  values = squared = None
  if algorithm.needs_critic:
    values = in_parts(lambda *part: learner.values(critic, *part))
  if algorithm.needs_reference:
    rows = rows._replace(ref_logp=read(reference, replay=False)[0])
  if algorithm.old_logp == "recompute":
    squared = algorithm.takes("sum_squared_probs")
    old_logp, squared = read(params, sum_squared_probs=squared)
    rows = rows._replace(old_logp=old_logp)
  elif algorithm.anchors_late and algorithm.late.policy == "recompute":
    rows = rows._replace(old_logp=read(params)[0])
  rewards = _shaped_rewards(algorithm, rows, batch.mask)

  def judged(rows, mask):
    found, returns = _advantages(
      algorithm,
      rewards,
      batch,
      mask,
      logp=rows.old_logp,
      sum_squared_probs=squared,
      weight=rows.weight if algorithm.correct.weighs else None,
      values=values,
    )
    targets = None if values is None else Targets(values, returns, mask)
    return rows._replace(advantages=found, critic=targets)

  if not algorithm.corrects_first:
    rows = judged(rows, batch.mask)
  if not algorithm.late_correction:
    correction, metrics = correct(algorithm, rows, rows.old_logp, version)
    rows = rows._replace(weight=correction.weight, trains=correction.mask)
  if algorithm.corrects_first:
    rows = judged(rows, rows.trains if algorithm.baseline == "accepted" else batch.mask)
  if rows.critic is not None:
    metrics |= critic_metrics(rows.critic)
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


def _advantages(algorithm: Algorithm, rewards, batch: Batch, mask, **known):
  """`(advantages, returns)`, with baselines over the rows that `mask` leaves something.

  Advantages are `[B]` or `[B, T]`; returns `[B, T]`, or None from an estimator that has
  none.
  """
  found = losses.call_loss(
    algorithm.advantage,
    rewards=rewards,
    group_ids=batch.group_ids,
    mask=mask,
    lengths=mask.sum(axis=1),
    baseline_mask=mask.any(axis=1),
    greedy_rewards=batch.greedy_rewards,
    named_rewards=batch.named_rewards,
    turn_rewards=batch.turn_rewards,
    # Of what was sampled: a rejection ends no turn.
    turn_ids=turn_ids(batch.mask),
    **known,
  )
  if isinstance(found, tuple):
    return found
  if algorithm.needs_critic:
    raise ValueError(
      f"{losses.traits(algorithm.advantage).name} takes values and returns advantages "
      "alone; return (advantages, returns), which the critic is trained on"
    )
  return found, None
