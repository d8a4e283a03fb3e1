"""What a step reports beside its correction's and its loss's own metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.advantages.shaping import has_variance
from tis_jax.corrections import Correction
from tis_jax.learner.batch import Batch
from tis_jax.learner.rows import Targets
from tis_jax.numerics.groups import group_count
from tis_jax.numerics.metrics import (
  Metrics,
  finalize,
  fraction,
  histogram,
  maximum,
  mean,
  ratio,
  total,
)
from tis_jax.numerics.ratios import log_ratio
from tis_jax.numerics.ratios import ratio as token_ratio
from tis_jax.numerics.units import turn_ids
from tis_jax.rollouts import ABORTED, LENGTH

# Ratios from 1/100 to 100, symmetric about 1 on a log axis, one bin centred on it.
WEIGHT_EDGES = np.exp(np.linspace(-np.log(100), np.log(100), 62))


def batch_metrics(batch: Batch, shaped_rewards, advantages, version) -> Metrics:
  """Rewards, lengths, groups and staleness of the rows that hold anything."""
  held = jnp.any(batch.mask, axis=1)
  aborted = batch.finish_reasons == ABORTED
  mask = held if advantages.ndim == 1 else batch.mask
  length = batch.mask.sum(axis=1).astype(jnp.float32)
  staleness = (version - batch.versions).astype(jnp.float32)
  dull = ~has_variance(batch.rewards, batch.group_ids, where=held)
  some: Metrics = {}
  if batch.greedy_rewards is not None:
    some |= {"reward/greedy": mean(batch.greedy_rewards, held)}
  if batch.turn_rewards is not None:
    turns = turn_ids(batch.mask).max(axis=1) + 1
    some |= {"response/turns": mean(turns.astype(jnp.float32), held)}
  share = jnp.where(held, 1.0 / group_count(batch.group_ids, held), 0.0)
  return some | {
    "reward/mean": mean(batch.rewards, held),
    "reward/shaped": mean(shaped_rewards, held),
    "advantage/abs": mean(jnp.abs(advantages), mask),
    "groups/count": total(share),
    "groups/without_signal": ratio(jnp.where(dull, share, 0.0).sum(), share.sum()),
    "response/length": mean(length, held),
    "response/length_max": maximum(length, held),
    "response/truncated": fraction(batch.finish_reasons == LENGTH, held),
    "response/aborted": fraction(aborted, held | aborted),
    "staleness/mean": mean(staleness, batch.mask),
    "staleness/max": maximum(staleness, batch.mask),
  }


def correction_metrics(correction: Correction, batch: Batch, old_logp) -> Metrics:
  """The correction's own metrics, and histograms of the weights."""
  d = log_ratio(old_logp, batch.sampler_logp, batch.mask)
  known = batch.mask & ~jnp.isnan(d)
  applied = correction.mask & known
  return correction.metrics | {
    "weight_histogram/raw": histogram(token_ratio(d), known, WEIGHT_EDGES),
    "weight_histogram/applied": histogram(correction.weight, applied, WEIGHT_EDGES),
  }


def critic_metrics(targets: Targets) -> Metrics:
  """How much of the returns a critic explains before the update.

  1 - var(return - value) / var(return): 1 is a critic that knows, 0 one that says the
  same everywhere.
  """
  spread = lambda x: jnp.var(x, where=targets.mask)
  total = spread(targets.returns)
  left = spread(targets.returns - targets.values)
  explained = 1.0 - left / jnp.where(total > 0, total, 1.0)
  return {"value/explained": ratio(jnp.where(total > 0, explained, 0.0), 1.0)}


def plain(metrics: Metrics) -> dict[str, jax.Array | dict[str, jax.Array]]:
  """Scalars by name, and the histograms, as counts, under "weight_histogram"."""
  scalars: dict[str, Any] = dict(metrics)
  counts = {
    name: scalars.pop(f"weight_histogram/{name}").counts for name in ("raw", "applied")
  }
  edges = jnp.asarray(WEIGHT_EDGES, jnp.float32)
  return finalize(scalars) | {"weight_histogram": counts | {"edges": edges}}
