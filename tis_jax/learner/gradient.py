"""One optimizer update: the loss of a mini-batch, its gradient, and the guard."""

import functools

import jax
import jax.numpy as jnp
import optax

from tis_jax import losses
from tis_jax.corrections import token_law
from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.assess import correct
from tis_jax.learner.late import anchored
from tis_jax.learner.learner import Learner
from tis_jax.learner.microbatch import scan_first, split
from tis_jax.learner.packed_rows import rows_in, used_passes
from tis_jax.learner.packing import Packing
from tis_jax.learner.rows import CHAIN_ARGUMENTS, Rows
from tis_jax.learner.state import CriticState
from tis_jax.logprobs import TokenLogprobs
from tis_jax.models.params import dtype_of
from tis_jax.numerics.metrics import (
  maximum,
  mean,
  merge_stacked,
  nothing,
  ratio,
  total,
)

# fp16 begins at 6e-8, below which the gradients of single activations often lie.
_FP16_SCALE = 2.0**10


def optimize(
  learner: Learner, carry, rows: Rows, packing: Packing | None, key, version
):
  """One optimizer update on one mini-batch.

  Args:
    learner: the statics.
    carry: `(params, opt_state, critic, healthy)`, critic a `CriticState` or None; once
      something was not finite, healthy is False and the rest stays as it is.
    rows: of one mini-batch.
    packing: their packed rows, if the model takes those.
    key: for losses that sample.
    version: int32 scalar.

  Returns:
    `(carry, metrics)`.
  """
  params, opt_state, critic, healthy = carry
  algorithm = learner.algorithm
  if algorithm.aggregation.denominator == "sampled":
    rows = rows._replace(denominator=_denominator(algorithm, rows, rows.batch.mask))
  elif rows.trains is not None:
    rows = rows._replace(denominator=_denominator(algorithm, rows, rows.trains))
  trained = (params, None)
  if critic is not None:
    trained = (params, critic.params)
    counted = _denominator(algorithm, rows, rows.critic.mask)
    rows = rows._replace(critic=rows.critic._replace(denominator=counted))
  # A power of two, so that only what would have been lost below it differs.
  scale = _FP16_SCALE if dtype_of(learner.graph) == jnp.float16 else 1.0

  def scaled_loss(*args):
    loss, found = _loss(*args)
    return loss * scale, found

  differentiate = jax.value_and_grad(scaled_loss, has_aux=True)

  def gradients_of(rows, packing, key):
    (_, found), gradients = differentiate(trained, learner, rows, packing, key, version)
    return jax.tree.map(lambda x: x / scale, gradients), found

  def micro_batch(carry, xs):
    rows, key = xs
    gradients, found = gradients_of(rows, None, key)
    return jax.tree.map(jnp.add, carry, gradients), found

  def packed_pass(carry, xs):
    packing, key = xs
    gradients, found = gradients_of(rows_in(rows, packing), packing, key)
    return jax.tree.map(jnp.add, carry, gradients), found

  zeros = jax.tree.map(jnp.zeros_like, trained)
  keys = jax.random.split(key, algorithm.micro_batches)
  if algorithm.micro_batches == 1:
    # Added to nothing: a sum to begin with is as large as the params.
    gradients, found = gradients_of(rows, packing, keys[0])
    found = jax.tree.map(lambda x: x[None], found)
  elif packing is not None:
    passes = split(packing, algorithm.micro_batches, learner.mesh)
    gradients, found = scan_first(
      used_passes(passes), packed_pass, zeros, (passes, keys), _unread
    )
  else:
    parts = split(rows, algorithm.micro_batches, learner.mesh)
    gradients, found = jax.lax.scan(micro_batch, zeros, (parts, keys))
  terms, metrics = found
  # Micro-batches divide by the mini-batch's denominators, so their losses add up.
  terms = {f"loss/{name}": x.sum() for name, x in terms.items()}
  norm, critic_norm = (optax.global_norm(x) for x in gradients)
  healthy &= jnp.isfinite(norm) & jnp.isfinite(terms["loss/total"])
  old = (params, opt_state, critic)
  new = _moved(learner.optimizer, gradients[0], params, opt_state)
  metrics = merge_stacked(metrics) | {x: ratio(terms[x], 1.0) for x in terms}
  if critic is None:
    new = (*new, None)
  else:
    # Together or not at all: a policy without its critic's step is another run.
    healthy &= jnp.isfinite(critic_norm) & jnp.isfinite(terms["loss/value"])
    new = (*new, CriticState(*_moved(learner.critic_optimizer, gradients[1], *critic)))
    metrics |= {"value/grad_norm": ratio(critic_norm, 1.0)}
  kept = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), new, old)
  metrics |= {
    "optimizer/grad_norm": ratio(norm, 1.0),
    "optimizer/grad_norm_max": maximum(norm, jnp.array(True)),
    "update/skipped": total(~healthy),
  }
  return (*kept, healthy), metrics


def _unread(found):
  """`(terms, metrics)` of a pass that is not made."""
  terms, metrics = found
  return {name: jnp.zeros(x.shape, x.dtype) for name, x in terms.items()}, nothing(
    metrics
  )


def _moved(optimizer, gradients, params, opt_state):
  """`(params, opt_state)` after an optimizer update."""
  updates, opt_state = optimizer.update(gradients, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _denominator(algorithm: Algorithm, rows: Rows, counted):
  mode = algorithm.aggregation.mode
  return losses.denominators(
    counted,
    mode,
    group_ids=rows.batch.group_ids if mode == "prompt_mean" else None,
    length=algorithm.aggregation.length,
  )


def _loss(trained, learner: Learner, rows: Rows, packing: Packing | None, key, version):
  """The share of the mini-batch's loss that these rows have: `(loss, found)`.

  The sum of the policy's and the critic's: they share no parameter.
  """
  params, critic = trained
  algorithm, batch, metrics = learner.algorithm, rows.batch, {}
  out = learner.score(params, batch, packing, candidates=algorithm.score_centering)
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
  if algorithm.anchors_late:
    assert algorithm.max_staleness is not None
    old_logp, late_weight = anchored(
      algorithm.late,
      algorithm.max_staleness,
      logp=current,
      old_logp=rows.old_logp,
      sampler_logp=sampler_logp,
      versions=batch.versions,
      mask=batch.mask,
      version=version,
    )
    weight *= late_weight
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
  terms = {"policy": policy, "total": policy}
  if algorithm.score_centering:
    terms["centering"], found_centre = _centering(
      algorithm, rows, out, current, version, denominator
    )
    terms["total"] += terms["centering"]
    metrics |= found_centre
  assert out.entropy is not None, "`score` asks for it"
  bonus, entropy = losses.entropy(out.entropy, batch.mask)
  if algorithm.entropy_coefficient:
    terms["entropy"] = algorithm.entropy_coefficient * summed(bonus)
    terms["total"] += terms["entropy"]
  if algorithm.needs_reference:
    kl, found_kl = _kl(algorithm, out.logp, rows.ref_logp, sampler_logp, trains)
    metrics |= found_kl
    if algorithm.kl.placement == "loss":
      terms["kl"] = algorithm.kl.coefficient * summed(kl)
      terms["total"] += terms["kl"]
  loss = terms["total"]
  if critic is not None:
    terms["value"], found_value = _value_loss(learner, critic, rows, packing)
    loss += terms["value"]
    metrics |= found_value
  return loss, (terms, metrics | found | entropy)


def _centering(
  algorithm: Algorithm, rows: Rows, out: TokenLogprobs, current, version, denominator
):
  """`(loss, metrics)` of the centering, at every place that any token would train."""
  batch, law = rows.batch, token_law(algorithm.correct)
  told = {name: of(rows, version) for name, of in CHAIN_ARGUMENTS.items()}
  mask = batch.mask if rows.exact is None else batch.mask & rows.exact
  # Whole sequences go by the numbers that the correction had.
  old_logp = current if algorithm.late_correction else rows.old_logp
  places = law.places(old_logp, batch.sampler_logp, mask, **told).mask
  assert out.candidates is not None and batch.top_logp is not None, "`update` looks"
  by_token = {x: told[x] for x in ("advantages", "versions", "learner_version")}
  token_loss, metrics = losses.score_centering(
    out.candidates,
    batch.top_logp,
    rows.advantages,
    places,
    law=functools.partial(law, **by_token),
  )
  return losses.aggregate(token_loss, places, denominator=denominator), metrics


def _value_loss(learner: Learner, critic, rows: Rows, packing: Packing | None):
  """`(loss, metrics)` of the critic."""
  targets = rows.critic
  token_loss, metrics = losses.value(
    learner.values(critic, rows.batch._replace(mask=targets.mask), packing),
    targets.values,
    targets.returns,
    targets.mask,
    clip=learner.algorithm.critic.clip,
  )
  summed = losses.aggregate(token_loss, targets.mask, denominator=targets.denominator)
  return summed, metrics


def _kl(algorithm: Algorithm, logp, ref_logp, sampler_logp, mask):
  """`(penalty_BT, metrics)` of the KL to the reference."""
  kind = algorithm.kl.kind
  if algorithm.kl.weighted:
    kl = losses.weighted_kl_penalty(logp, ref_logp, sampler_logp, kind, mask)
  else:
    kl = losses.kl_penalty(logp, ref_logp, kind, mask)
  reported = losses.kl_penalty(logp, ref_logp, "k3", mask)
  return kl, {"kl/reference": mean(jax.lax.stop_gradient(reported), mask)}
