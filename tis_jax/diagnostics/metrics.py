"""Poolable metrics: a dict of small pytrees that merge exactly.

A metric holds what is needed to merge it (sums and counts, or an extremum), never a
finished average. Merging is therefore exact over micro-batches, shards and steps, in
any order. `finalize` turns a dict of them into plain numbers, with standard errors.

  metrics = {"ratio": mean(ratio_BT, mask_BT), "ratio_max": maximum(ratio_BT, mask_BT)}
  metrics = merge(metrics, metrics_of_next_micro_batch)
  finalize(metrics)  # {"ratio": 1.02, "ratio/stderr": 0.01, "ratio_max": 3.4}
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
  """A mean over counted items: sum, sum of squares and count (all fp32 scalars)."""

  total: jax.Array
  total_sq: jax.Array
  count: jax.Array
  reduce = staticmethod(jnp.add)

  def finalize(self) -> dict[str, jax.Array]:
    value = _ratio(self.total, self.count)
    variance = jnp.maximum(_ratio(self.total_sq, self.count) - value**2, 0.0)
    return {"": value, "stderr": jnp.sqrt(_ratio(variance, self.count))}


class Ratio(NamedTuple):
  """A quotient of two sums, for averages with weights of their own."""

  numerator: jax.Array
  denominator: jax.Array
  reduce = staticmethod(jnp.add)

  def finalize(self) -> dict[str, jax.Array]:
    return {"": _ratio(self.numerator, self.denominator)}


class Sum(NamedTuple):
  """A plain total: tokens, sequences, events."""

  value: jax.Array
  reduce = staticmethod(jnp.add)

  def finalize(self) -> dict[str, jax.Array]:
    return {"": self.value}


class Max(NamedTuple):
  """The largest value seen; 0 when nothing was."""

  value: jax.Array
  reduce = staticmethod(jnp.maximum)

  def finalize(self) -> dict[str, jax.Array]:
    return {"": jnp.where(jnp.isneginf(self.value), 0.0, self.value)}


class Min(NamedTuple):
  """The smallest value seen; 0 when nothing was."""

  value: jax.Array
  reduce = staticmethod(jnp.minimum)

  def finalize(self) -> dict[str, jax.Array]:
    return {"": jnp.where(jnp.isposinf(self.value), 0.0, self.value)}


Metric = Mean | Ratio | Sum | Max | Min
Metrics = dict[str, Metric]


def mean(x: jax.Array, mask: jax.Array) -> Mean:
  """The mean of `x` where `mask` is True. Values elsewhere may be NaN."""
  x = jnp.where(mask, x, 0.0).astype(jnp.float32)
  return Mean(x.sum(), (x * x).sum(), mask.sum(dtype=jnp.float32))


def ratio(numerator: jax.Array, denominator: jax.Array) -> Ratio:
  """The quotient of two sums that were taken already."""
  as_fp32 = partial(jnp.asarray, dtype=jnp.float32)
  return Ratio(as_fp32(numerator), as_fp32(denominator))


def total(x: jax.Array, mask: jax.Array | None = None) -> Sum:
  """The sum of `x` where `mask` is True."""
  x = x if mask is None else jnp.where(mask, x, 0)
  return Sum(x.sum(dtype=jnp.float32))


def maximum(x: jax.Array, mask: jax.Array) -> Max:
  """The largest `x` where `mask` is True."""
  return Max(jnp.where(mask, x, -jnp.inf).astype(jnp.float32).max(initial=-jnp.inf))


def minimum(x: jax.Array, mask: jax.Array) -> Min:
  """The smallest `x` where `mask` is True."""
  return Min(jnp.where(mask, x, jnp.inf).astype(jnp.float32).min(initial=jnp.inf))


def merge(*parts: Mapping[str, Metric]) -> Metrics:
  """Pools dicts of metrics with the same keys; exact, and the order does not matter."""
  first, *rest = parts
  for other in rest:
    if set(other) != set(first):
      odd = sorted(set(other) ^ set(first))
      raise ValueError(f"metrics to merge differ in their keys: {odd}")
  return {
    name: metric
    if not rest
    else type(metric)(
      *(
        _reduce_many(metric.reduce, field)
        for field in zip(metric, *(other[name] for other in rest), strict=True)
      )
    )
    for name, metric in first.items()
  }


def merge_stacked(metrics: Mapping[str, Metric], axis: int = 0) -> Metrics:
  """Pools metrics whose leaves carry a leading axis, as `lax.scan` stacks them."""
  reducers = {jnp.add: jnp.sum, jnp.maximum: jnp.max, jnp.minimum: jnp.min}
  return {
    name: type(metric)(*(reducers[metric.reduce](f, axis=axis) for f in metric))
    for name, metric in metrics.items()
  }


def finalize(metrics: Mapping[str, Metric]) -> dict[str, jax.Array]:
  """Plain scalars: each metric's value under its name, extras under `name/extra`."""
  return {
    f"{name}/{extra}" if extra else name: value
    for name, metric in metrics.items()
    for extra, value in metric.finalize().items()
  }


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """A quotient that is 0, not NaN, when nothing was counted."""
  empty = denominator == 0
  return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, denominator))


def _reduce_many(reduce, fields):
  first, *rest = fields
  for field in rest:
    first = reduce(first, field)
  return first
