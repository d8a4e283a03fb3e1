"""One optimizer update: the loss of a mini-batch, its gradient, and the guard."""

import jax
import jax.numpy as jnp
import optax

from tis_jax import losses
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.assess import correct
from tis_jax.learner.learner import Learner
from tis_jax.learner.microbatch import split
from tis_jax.learner.rows import Rows
from tis_jax.numerics.metrics import maximum, mean, merge_stacked, ratio, total


def optimize(learner: Learner, carry, rows: Rows, key, version):
  """One optimizer update on one mini-batch.

  Args:
    learner: the statics.
    carry: `(params, opt_state, healthy)`; once something was not finite, healthy is
      False and the rest stays as it is.
    rows: of one mini-batch.
    key: for losses that sample.
    version: int32 scalar.

  Returns:
    `(carry, metrics)`.
  """
  params, opt_state, healthy = carry
  algorithm = learner.algorithm
  if algorithm.aggregation.denominator == "sampled":
    rows = rows._replace(denominator=_denominator(algorithm, rows, rows.batch.mask))
  elif rows.trains is not None:
    rows = rows._replace(denominator=_denominator(algorithm, rows, rows.trains))
  differentiate = jax.value_and_grad(_loss, has_aux=True)

  def micro_batch(carry, xs):
    (_, found), gradients = differentiate(params, learner, *xs, version)
    return jax.tree.map(jnp.add, carry, gradients), found

  parts = split(rows, algorithm.micro_batches, learner.mesh)
  keys = jax.random.split(key, algorithm.micro_batches)
  gradients, (terms, metrics) = jax.lax.scan(
    micro_batch, jax.tree.map(jnp.zeros_like, params), (parts, keys)
  )
  # Micro-batches divide by the mini-batch's denominators, so their losses add up.
  terms = {f"loss/{name}": x.sum() for name, x in terms.items()}
  norm = optax.global_norm(gradients)
  healthy &= jnp.isfinite(norm) & jnp.isfinite(terms["loss/total"])
  updates, new_opt_state = learner.optimizer.update(gradients, opt_state, params)
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


def _denominator(algorithm: Algorithm, rows: Rows, counted):
  mode = algorithm.aggregation.mode
  return losses.denominators(
    counted,
    mode,
    group_ids=rows.batch.group_ids if mode == "prompt_mean" else None,
    length=algorithm.aggregation.length,
  )


def _loss(params, learner: Learner, rows: Rows, key, version):
  """The share of the mini-batch's loss that these rows have: `(loss, found)`."""
  algorithm, batch, metrics = learner.algorithm, rows.batch, {}
  out = learner.score(params, batch)
  current = jax.lax.stop_gradient(out.logp)
  weight, trains, denominator = rows.weight, rows.trains, rows.denominator
  if algorithm.late_correction:
    correction, metrics = correct(algorithm, rows, current, version)
    weight, trains = correction.weight, correction.mask
    if denominator is None:
      denominator = _denominator(algorithm, rows, trains)
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
  assert out.entropy is not None, "`score` asks for it"
  bonus, entropy = losses.entropy(out.entropy, batch.mask)
  terms = {"policy": policy, "total": policy}
  if algorithm.entropy_coefficient:
    terms["entropy"] = algorithm.entropy_coefficient * summed(bonus)
    terms["total"] += terms["entropy"]
  if algorithm.needs_reference:
    kl, found_kl = _kl(algorithm, out.logp, rows.ref_logp, sampler_logp, trains)
    metrics |= found_kl
    if algorithm.kl.placement == "loss":
      terms["kl"] = algorithm.kl.coefficient * summed(kl)
      terms["total"] += terms["kl"]
  return terms["total"], (terms, metrics | found | entropy)


def _kl(algorithm: Algorithm, logp, ref_logp, sampler_logp, mask):
  """`(penalty_BT, metrics)` of the KL to the reference."""
  kind = algorithm.kl.kind
  if algorithm.kl.weighted:
    kl = losses.weighted_kl_penalty(logp, ref_logp, sampler_logp, kind, mask)
  else:
    kl = losses.kl_penalty(logp, ref_logp, kind, mask)
  reported = losses.kl_penalty(logp, ref_logp, "k3", mask)
  return kl, {"kl/reference": mean(jax.lax.stop_gradient(reported), mask)}
