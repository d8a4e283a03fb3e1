"""Where the mismatch sits: percentiles, and the log-ratio by what may explain it."""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.state import State
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.metrics import (
  EffectiveSampleSize,
  Histogram,
  Metrics,
  histogram_of_bins,
  mean,
  mean_of_sums,
)
from tis_jax.numerics.ratios import clamp_log, log_ratio
from tis_jax.numerics.rows import Rows, by_row, walk
from tis_jax.numerics.units import prefix_sum

_LEAST, _SIDE_BINS = 1e-4, 24
_BIN = math.log(20.0 / _LEAST) / _SIDE_BINS
_SIDE = np.geomspace(_LEAST, 20.0, _SIDE_BINS + 1)
LOG_EDGES = np.concatenate([-_SIDE[::-1], _SIDE])
"""Bins of log-ratios: 4.5 a decade from 1e-4 to 20 on either side, one about 0."""

POSITIONS = tuple(2**i for i in range(15))
"""Position buckets start at 0 and at these tokens of the sequence."""

PROBABILITIES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Buckets of the sampler's probability of the token start at 0 and at these."""

STALENESS = tuple(range(1, 9))
"""Staleness buckets start at 0 versions and at these; the last one is open."""

LENGTHS = tuple(64 * 2**i for i in range(8))
"""Length buckets start at 0 and at these many tokens."""


def detail_metrics(batch: Incoming, state: State) -> Metrics:
  """Percentiles and breakdowns. A few times the cost of the core metrics.

  Returns:
    Poolable metrics:
    `weight/raw_percentiles`, `weight/percentiles`: of the ratio before any bound, and
    of the weight where tokens still train.
    `log_ratio_by_position/K` (tokens from the start of the row, or from the first of a
    packed sequence), `_by_probability/K`, `_by_staleness/K` (with versions):
    the mean log-ratio, and as its `std` the spread, of the bucket that starts at K.
    `by_length/K/accepted` and `by_length/K/ess`: for sequences of K tokens and more,
    the share that is accepted and the effective sample size of their products. A band
    on the mean ratio accepts more of the longer ones while their sample size vanishes.
    `mismatch/numeric`, `mismatch/stale` (with `version_logp`): the two parts of the
    log-ratio.
  """
  whole = batch.begin()
  log_raw = clamp_log(batch.log_ratio) if state.raw is None else jnp.log(state.raw)
  log_raw, weight = (
    jnp.broadcast_to(x, batch.mask.shape) for x in (log_raw, state.weight)
  )
  metrics = {
    "weight/raw_percentiles": _histogram(_bin, log_raw, batch.known),
    "weight/percentiles": _histogram(lambda w: _bin(jnp.log(w)), weight, state.mask),
  }
  metrics |= _by_position(batch)
  metrics |= _by(
    "probability",
    jnp.exp(jnp.where(batch.known, as_float(batch.inputs.sampler_logp), 0.0)),
    PROBABILITIES,
    batch,
  )
  if {"versions", "learner_version"} <= batch.inputs.given:
    metrics |= _by("staleness", batch.staleness, STALENESS, batch)
  inputs = batch.inputs
  if inputs.version_logp is not None:
    numeric = log_ratio(inputs.version_logp, inputs.sampler_logp, batch.known)
    apart = batch.known & ~jnp.isnan(numeric)
    metrics["mismatch/numeric"] = mean(numeric, apart)
    metrics["mismatch/stale"] = mean(batch.log_ratio - numeric, apart)
  return metrics | _by_length(batch, whole, state)


def _histogram(bins, values, mask) -> Histogram:
  """How the ratios are spread whose `values` lie in `bins(values)` of `LOG_EDGES`."""
  edges = np.exp(LOG_EDGES)
  return walk(
    lambda values, mask: histogram_of_bins(bins(values), mask, edges),
    lambda a, b: a._replace(counts=a.counts + b.counts),
    values,
    mask,
  )


def _bin(log_ratio):
  """Which bin of `LOG_EDGES` a log-ratio lies in; a weight of 0 in the lowest."""
  beyond = jnp.ceil(jnp.log(jnp.abs(log_ratio) / _LEAST) / _BIN)
  steps = jnp.clip(beyond, 0, _SIDE_BINS).astype(jnp.int32)
  return _SIDE_BINS + jnp.where(log_ratio < 0, -steps, steps)


def _by(name: str, values, starts, batch: Incoming) -> Metrics:
  """The log-ratio in buckets of `values`."""

  def features(values, d, known) -> Rows:
    total = {}
    for i, inside in enumerate(_buckets(values, starts)):
      inside = inside & known
      x = jnp.where(inside, d, 0.0)
      total |= {f"x{i}": x, f"xx{i}": x * x, f"n{i}": inside.astype(d.dtype)}
    return Rows(total, {}, {})

  sums = by_row(features, values, clamp_log(batch.log_ratio), batch.known).total
  sums = {key: x.sum() for key, x in sums.items()}
  columns = (
    jnp.stack([sums[f"{key}{i}"] for i in range(len(starts) + 1)])
    for key in ("x", "xx", "n")
  )
  return _named(f"log_ratio_by_{name}", starts, mean_of_sums(*columns))


def _by_position(batch: Incoming) -> Metrics:
  if batch.inputs.segment_ids is not None:
    ones = jnp.ones_like(batch.log_ratio)
    position = prefix_sum(ones, batch.starts("sequence")) - 1.0
    return _by("position", position, POSITIONS, batch)
  # A position is a column: sum over the batch first, and bucket what is left.
  d = clamp_log(batch.log_ratio)
  columns = d.sum(axis=0), (d * d).sum(axis=0), batch.known.sum(axis=0, dtype=d.dtype)
  inside = jnp.stack(_buckets(jnp.arange(d.shape[1]), POSITIONS))
  sums = (jnp.where(inside, x[None], 0.0).sum(axis=1) for x in columns)
  return _named("log_ratio_by_position", POSITIONS, mean_of_sums(*sums))


def _by_length(batch: Incoming, whole: State, state: State) -> Metrics:
  length = batch.unit_count(batch.mask)
  held, known = batch.units(batch.mask), batch.units(batch.known)
  accepted = batch.held(state)
  product = jnp.exp(batch.level("sequence", whole))
  weight = jnp.where(known, product, 0.0)
  inside = jnp.stack(_buckets(length, LENGTHS)).astype(weight.dtype)
  held, known = held.astype(weight.dtype), known.astype(weight.dtype)

  def total(x):
    return (inside * x[None]).sum(axis=(1, 2))

  hits, number = total(held * accepted), total(held)
  ess = EffectiveSampleSize(total(weight), total(weight * weight), total(known))
  share = mean_of_sums(hits, hits, number)
  by_length = _named("by_length", LENGTHS, share, "/accepted")
  return by_length | _named("by_length", LENGTHS, ess, "/ess")


def _named(name: str, starts, metrics, suffix: str = "") -> Metrics:
  """A metric of vectors as one metric a bucket."""
  return {
    f"{name}/{start:g}{suffix}": type(metrics)(*(field[i] for field in metrics))
    for i, start in enumerate((0, *starts))
  }


def _buckets(values, starts):
  """For each bucket, where `values` lie in it; the first has no lower end."""
  reached = [values >= start for start in starts]
  return [
    ~reached[0],
    *(low & ~high for low, high in itertools.pairwise(reached)),
    reached[-1],
  ]
