"""Stages that rescale the weight an earlier stage made."""

from typing import Literal

import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import State
from tis_jax.numerics.checks import check_choice
from tis_jax.numerics.groups import group_sum
from tis_jax.numerics.metrics import Metrics, mean_of_sums
from tis_jax.numerics.units import unit_sum


def normalize(
  over: Literal["batch", "group"] = "batch",
  *,
  by: Literal["token", "sequence"] = "token",
) -> Stage:
  """Divides the weights by their mean, so that they average 1: self-normalisation.

  `w / mean(w)` over what still trains. It trades the variance that comes with the
  weights' common level for a bias of order 1/n, and undoes the hidden cut of the
  learning rate of a truncated product. Normalised weights may exceed the cap.

  Args:
    over: "batch", or each prompt's "group" (needs `group_ids=`).
    by: "token" averages over tokens, "sequence" averages the sequences' mean weights.

  Returns:
    A stage for `chain`, after one that makes a weight. The mean is that of the call's
    batch: normalise before splitting it into micro-batches. A mean of 0 divides
    nothing.

  Raises:
    ValueError: an unknown word, or (when called) groups of packed rows.

  Source: `rollout_is_batch_normalize` of verl, `tis_batch_normalize` of slime; over a
  group, self-normalised importance sampling (Hesterberg 1995).

  >>> from tis_jax.corrections import chain, truncate
  >>> old, sampler = jnp.log(jnp.array([[0.3, 0.1]])), jnp.log(jnp.array([[0.2, 0.2]]))
  >>> out = chain(truncate(2.0), normalize())(old, sampler, jnp.ones((1, 2)))
  >>> out.weight.round(3).tolist()
  [[1.5, 0.5]]
  """
  check_choice("normalize: over", over, ("batch", "group"))
  check_choice("normalize: by", by, ("token", "sequence"))
  return make_stage(
    _normalize,
    makes="scale",
    needs=("group_ids",) if over == "group" else (),
    pools=True,
    over=over,
    by=by,
  )


def _normalize(batch: Incoming, state: State, *, over, by) -> tuple[State, Metrics]:
  total, number = _sums(batch, state, by)
  if over == "batch":
    total, number = total.sum(), number.sum()
  elif state.packed:
    raise ValueError(
      "normalize: over='group' needs one sequence a row, not packed rows"
    )
  else:
    ids = batch.inputs.group_ids
    total, number = (group_sum(x[:, 0], ids)[:, None] for x in (total, number))
  mean = total / jnp.maximum(number, 1.0)
  mean = jnp.where(mean > 1e-8, mean, 1.0)
  factor = mean_of_sums(mean.sum(), (mean * mean).sum(), jnp.ones_like(mean).sum())
  return state._replace(weight=state.weight / mean), {"factor": factor}


def scale_by_ess() -> Stage:
  """Scales the weights by the root of their effective sample size: `w sqrt(ESS / n)`.

  A batch whose weights rest on few sequences then takes a shorter step. The effective
  sample size is that of the sequences' mean weights. With an optimizer that rescales
  gradients (Adam), scale the learning rate by the `weight/ess` metric instead.

  Returns:
    A stage for `chain`, after one that makes a weight.

  Source: the ESS-guided step of VCPO (arXiv 2602.17616), `lr ~ sqrt(ESS / B)`.

  >>> from tis_jax.corrections import chain, importance
  >>> old, sampler = jnp.log(jnp.array([[3.0], [1.0]])), jnp.zeros((2, 1))
  >>> out = chain(importance(), scale_by_ess())(old, sampler, jnp.ones((2, 1)))
  >>> (out.weight**2).round(3).tolist()
  [[7.2], [0.8]]
  """
  return make_stage(_scale_by_ess, makes="scale", pools=True)


def _scale_by_ess(batch: Incoming, state: State) -> tuple[State, Metrics]:
  weights, held = _sequence_means(batch, state)
  total, squares = weights.sum(), (weights * weights).sum()
  number = jnp.maximum(held.sum(dtype=weights.dtype), 1.0)
  share = jnp.where(squares > 0, total * total / (number * squares), 1.0)
  factor = jnp.sqrt(share)
  metrics: Metrics = {"factor": mean_of_sums(factor, factor * factor, jnp.ones(()))}
  return state._replace(weight=state.weight * factor), metrics


def _sums(batch: Incoming, state: State, by):
  """Sums of weight and of what is counted: `[B, 1]`, or `[B, T]` for packed rows."""
  if by == "sequence":
    weights, held = _sequence_means(batch, state)
    return weights, held.astype(weights.dtype)
  weights = jnp.where(state.mask, state.weight, 0.0)
  number = state.mask.astype(weights.dtype)
  return (x.sum(axis=1, keepdims=True) for x in (weights, number))


def _sequence_means(batch: Incoming, state: State):
  """Each sequence's mean weight, at the place that stands for it, and 0 elsewhere."""
  number = batch.unit_count(state.mask)
  total = unit_sum(jnp.where(state.mask, state.weight, 0.0), batch.starts("sequence"))
  held = batch.units(state.mask)
  return jnp.where(held, total / jnp.maximum(number, 1.0), 0.0), held
