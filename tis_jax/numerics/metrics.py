"""Poolable metrics: a dict of small pytrees that merge exactly.

A metric holds what is needed to merge it (sums and counts, or an extremum), never a
finished average. Merging is therefore exact over micro-batches, shards and steps, in
any order. `finalize` turns a dict of them into plain numbers, with standard errors.

  metrics = {"ratio": mean(ratio_BT, mask_BT), "ratio_max": maximum(ratio_BT, mask_BT)}
  metrics = merge(metrics, metrics_of_next_micro_batch)
  finalize(metrics)  # {"ratio": 1.02, "ratio/stderr": 0.01, "ratio_max": 3.4, ...}
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.numerics.arrays import Array

_Class = TypeVar("_Class", bound=type)


def _no_number(metric: _Class) -> _Class:
  """Lets a class of metrics say what to do when one is taken for a number."""

  def refuse(self, *_):
    raise TypeError(
      f"a {metric.__name__} is a metric that can still be merged, not a number; "
      "tis.finalize(metrics) gives a dict of numbers"
    )

  def formatted(self, spec: str) -> str:
    return refuse(self) if spec else str(self)

  methods = {"__float__": refuse, "__int__": refuse, "__format__": formatted}
  for name, method in methods.items():
    setattr(metric, name, method)
  return metric


@_no_number
class Mean(NamedTuple):
  """A mean over counted items: their sum, their squared deviations, their number.

  The squares are taken about the items' own mean: sums of plain squares would lose the
  spread of a weight that sits near 1 to cancellation in fp32.
  """

  total: jax.Array
  squares: jax.Array
  count: jax.Array

  def pooled(self) -> "Mean":
    total, count = self.total.sum(0), self.count.sum(0)
    shift = quotient(self.total, self.count) - quotient(total, count)
    return Mean(total, (self.squares + self.count * shift**2).sum(0), count)

  def finalize(self) -> dict[str, jax.Array]:
    variance = quotient(self.squares, self.count)
    return {
      "": quotient(self.total, self.count),
      "std": jnp.sqrt(variance),
      "stderr": jnp.sqrt(quotient(variance, self.count)),
    }


UNIT = 1e9
"""Of `HeavyMean`: squared ratios reach 2e17, and their squares in this unit 6e16."""


@_no_number
class HeavyMean(NamedTuple):
  """A mean of items so large that their squares do not fit fp32: in units of `UNIT`."""

  total: jax.Array
  squares: jax.Array
  count: jax.Array

  def pooled(self) -> "HeavyMean":
    return HeavyMean(*Mean(*self).pooled())

  def finalize(self) -> dict[str, jax.Array]:
    return {name: UNIT * x for name, x in Mean(*self).finalize().items()}


@_no_number
class Ratio(NamedTuple):
  """A quotient of two sums, for averages with weights of their own."""

  numerator: jax.Array
  denominator: jax.Array

  def pooled(self) -> "Ratio":
    return Ratio(self.numerator.sum(0), self.denominator.sum(0))

  def finalize(self) -> dict[str, jax.Array]:
    return {"": quotient(self.numerator, self.denominator)}


@_no_number
class Sum(NamedTuple):
  """A plain total: tokens, sequences, events."""

  value: jax.Array

  def pooled(self) -> "Sum":
    return Sum(self.value.sum(0))

  def finalize(self) -> dict[str, jax.Array]:
    return {"": self.value}


@_no_number
class Max(NamedTuple):
  """The largest value seen; 0 when nothing was."""

  value: jax.Array

  def pooled(self) -> "Max":
    return Max(self.value.max(0))

  def finalize(self) -> dict[str, jax.Array]:
    return {"": jnp.where(jnp.isneginf(self.value), 0.0, self.value)}


@_no_number
class Min(NamedTuple):
  """The smallest value seen; 0 when nothing was."""

  value: jax.Array

  def pooled(self) -> "Min":
    return Min(self.value.min(0))

  def finalize(self) -> dict[str, jax.Array]:
    return {"": jnp.where(jnp.isposinf(self.value), 0.0, self.value)}


@_no_number
class EffectiveSampleSize(NamedTuple):
  """`(sum w)^2 / (n sum w^2)`: the share of n samples that the weights leave in force.

  Kish, "Survey Sampling" (1965). 1 for equal weights, 1/n when one sample rules; 0 when
  nothing was counted.
  """

  total: jax.Array
  squares: jax.Array
  count: jax.Array

  def pooled(self) -> "EffectiveSampleSize":
    return EffectiveSampleSize(
      self.total.sum(0), self.squares.sum(0), self.count.sum(0)
    )

  def finalize(self) -> dict[str, jax.Array]:
    # In this order nothing overflows fp32: weights reach 5e8, their squares 2e17.
    mean_weight = quotient(self.total, self.count)
    return {"": mean_weight * quotient(self.total, self.squares)}


@_no_number
class Histogram(NamedTuple):
  """Counts between fixed edges, and the percentiles that follow from them."""

  counts: jax.Array
  edges: jax.Array
  percentiles = (1, 5, 25, 50, 75, 95, 99)

  def pooled(self) -> "Histogram":
    return Histogram(self.counts.sum(0), self.edges.max(0))

  def finalize(self) -> dict[str, jax.Array]:
    values = percentile(self, jnp.array(self.percentiles, jnp.float32))
    return {f"p{p:02d}": values[i] for i, p in enumerate(self.percentiles)}


Metric = Mean | HeavyMean | Ratio | Sum | Max | Min | EffectiveSampleSize | Histogram
Metrics = dict[str, Metric]


def mean(x: Array, mask: Array, *, pivot: float = 0.0) -> Mean:
  """The mean of `x` where `mask` is True. Values elsewhere may be NaN.

  Args:
    x: any shape.
    mask: the same shape, bool or 0/1.
    pivot: a value that `x` is known to sit near (1 for a ratio). One pass over the data
      then keeps its spread to full precision, and its mean too.

  >>> finalize({"w": mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1, 1, 0]))})
  {'w': Array(1.5, ...), 'w/std': Array(0.5, ...), 'w/stderr': Array(0.353553, ...)}
  """
  mask = mask != 0
  deviation = jnp.where(mask, x.astype(jnp.float32) - pivot, 0.0)
  return mean_of_sums(
    deviation.sum(), (deviation * deviation).sum(), _count(mask), pivot=pivot
  )


def mean_of_sums(
  total: jax.Array, squares: jax.Array, count: jax.Array, *, pivot: float = 0.0
) -> Mean:
  """A mean from sums that were taken already, of `x - pivot` and of its square.

  >>> mean_of_sums(jnp.array(1.0), jnp.array(1.0), jnp.array(2.0), pivot=1.0)
  Mean(total=Array(3., ...), squares=Array(0.5, ...), count=Array(2., ...))
  """
  total, squares, count = (jnp.asarray(v, jnp.float32) for v in (total, squares, count))
  about_mean = squares - quotient(total, count) * total
  # What is left of equal items is rounding, not spread.
  about_mean = jnp.where(about_mean > 2e-7 * squares, about_mean, 0.0)
  return Mean(total + pivot * count, about_mean, count)


def fraction(hit: Array, mask: Array) -> Mean:
  """The share of the True items of `mask` that `hit` holds for.

  >>> finalize({"hit": fraction(jnp.array([1, 0, 1]), jnp.array([1, 1, 0]))})["hit"]
  Array(0.5, ...)
  """
  return fraction_of(_count((hit != 0) & (mask != 0)), _count(mask != 0))


def fraction_of(hits: jax.Array, count: jax.Array) -> Mean:
  """A share from counts that were taken already.

  >>> finalize({"hit": fraction_of(jnp.array(1.0), jnp.array(4.0))})["hit"]
  Array(0.25, ...)
  """
  return mean_of_sums(hits, hits, count)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Ratio:
  """The quotient of two sums that were taken already; it pools as the sums do.

  >>> parts = [{"w": ratio(jnp.array(a), jnp.array(b))} for a, b in ((1, 1), (0, 3))]
  >>> finalize(merge(*parts))
  {'w': Array(0.25, ...)}
  """
  as_fp32 = partial(jnp.asarray, dtype=jnp.float32)
  return Ratio(as_fp32(numerator), as_fp32(denominator))


def total(x: Array, mask: Array | None = None) -> Sum:
  """The sum of `x` where `mask` is True.

  >>> total(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1, 1, 0]))
  Sum(value=Array(3., ...))
  """
  x = x if mask is None else jnp.where(mask != 0, x, 0)
  return Sum(x.sum(dtype=jnp.float32))


def maximum(x: Array, mask: Array) -> Max:
  """The largest `x` where `mask` is True.

  >>> maximum(jnp.array([1.0, 2.0, 9.0]), jnp.array([1, 1, 0])).value
  Array(2., ...)
  """
  x = jnp.where(mask != 0, x.astype(jnp.float32), -jnp.inf)
  return Max(x.max(initial=-jnp.inf))


def minimum(x: Array, mask: Array) -> Min:
  """The smallest `x` where `mask` is True.

  >>> minimum(jnp.array([1.0, 2.0, -9.0]), jnp.array([1, 1, 0])).value
  Array(1., ...)
  """
  x = jnp.where(mask != 0, x.astype(jnp.float32), jnp.inf)
  return Min(x.min(initial=jnp.inf))


def histogram(x: Array, mask: Array, edges: Array) -> Histogram:
  """Counts the `x` where `mask` is True between fixed ascending `edges`.

  Bin `i` holds `edges[i] < x <= edges[i + 1]`; the outer bins also hold what lies
  beyond the outer edges.

  Args:
    x: `[..., T]`; any axis but the last may be sharded.
    mask: `[..., T]` bool or 0/1.
    edges: `[K + 1]`.

  >>> histogram(jnp.array([0.2, 0.3, 7.0]), jnp.ones(3), jnp.array([0.0, 1.0, 2.0]))
  Histogram(counts=Array([2., 1.], ...), edges=Array([0., 1., 2.], ...))
  """
  edges = jnp.asarray(edges, jnp.float32)
  x = jnp.where(mask != 0, x.astype(jnp.float32), 0.0)
  bins = jnp.searchsorted(edges[1:-1], x, method="scan_unrolled")
  return histogram_of_bins(bins, mask, edges)


def histogram_of_bins(bins: Array, mask: Array, edges: Array) -> Histogram:
  """Counts items whose bins are known already.

  Args:
    bins: `[..., T]` int, from 0 to K - 1; any axis but the last may be sharded.
    mask: `[..., T]` bool or 0/1.
    edges: `[K + 1]`.

  >>> histogram_of_bins(jnp.array([0, 1, 1]), jnp.ones(3), jnp.arange(3.0)).counts
  Array([1., 2.], dtype=float32)
  """
  edges = jnp.asarray(edges, jnp.float32)
  number = edges.shape[0] - 1
  bins = jnp.where(mask != 0, bins, number)

  def scatter(bins):
    # By row, each with counts of its own: no shard writes to another's.
    of_row = lambda row: jnp.zeros(number).at[row].add(1.0, mode="drop")
    for _ in range(bins.ndim - 1):
      of_row = jax.vmap(of_row)
    return of_row(bins).sum(axis=range(bins.ndim - 1))

  def compare(bins):
    # One bin at a time: all of them at once would be K times as large as `bins`.
    return jax.lax.map(lambda i: _count(bins == i), jnp.arange(number))

  counts = jax.lax.platform_dependent(bins, cpu=scatter, default=compare)
  return Histogram(counts, edges)


def percentile(histogram: Histogram, percent: jax.Array) -> jax.Array:
  """The values below which `percent` of the counted items lie, linear inside a bin.

  Off by at most the width of the bin that holds it; 0 when nothing was counted.

  >>> counts, edges = jnp.array([1.0, 3.0]), jnp.array([0.0, 1.0, 2.0])
  >>> percentile(Histogram(counts, edges), jnp.array([25.0, 50.0])).tolist()
  [1.0, 1.333333]
  """
  cumulative = jnp.cumsum(histogram.counts)
  count = cumulative[-1]
  target = percent / 100.0 * count
  bin_ = jnp.sum(cumulative[None, :] < target[:, None], axis=1)
  bin_ = jnp.minimum(bin_, histogram.counts.size - 1)
  inside = target - (cumulative - histogram.counts)[bin_]
  share = quotient(inside, histogram.counts[bin_])
  low, high = histogram.edges[bin_], histogram.edges[bin_ + 1]
  return jnp.where(count > 0, low + share * (high - low), 0.0)


def merge(*parts: Mapping[str, Metric]) -> Metrics:
  """Pools dicts of metrics with the same keys; exact, and the order does not matter.

  Raises:
    ValueError: keys that differ.
    TypeError: something that is not a dict of metrics.

  >>> parts = [{"w": mean(jnp.array(x), jnp.ones(len(x)))} for x in ([1.0], [2.0, 6.0])]
  >>> finalize(merge(*parts))["w"]
  Array(3., ...)
  """
  for part in parts:
    _check_dict("merge", part)
  if not parts:
    raise TypeError("merge takes one dict of metrics or more, got none")
  first, *rest = parts
  for other in rest:
    if set(other) != set(first):
      odd = sorted(set(other) ^ set(first))
      raise ValueError(f"metrics to merge differ in their keys: {odd}")
  return merge_stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))


def merge_stacked(metrics: Mapping[str, Metric], axis: int = 0) -> Metrics:
  """Pools metrics whose leaves carry one more axis, as `lax.scan` stacks them.

  >>> rows = jax.vmap(lambda x: {"n": total(x)})(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
  >>> merge_stacked(rows)
  {'n': Sum(value=Array(10., ...))}
  """
  return {
    name: type(metric)(*(jnp.moveaxis(f, axis, 0) for f in metric)).pooled()
    for name, metric in metrics.items()
  }


def nothing(metrics: Mapping[str, Metric]) -> Metrics:
  """Metrics like these of nothing at all: merging them changes nothing.

  Args:
    metrics: their arrays, or `jax.ShapeDtypeStruct`s.

  >>> seen = {"n": total(jnp.ones(3)), "most": maximum(jnp.ones(3), jnp.ones(3))}
  >>> merge(seen, nothing(seen)) == seen
  True
  """
  least: dict[Any, tuple] = {
    Max: (-jnp.inf,),
    Min: (jnp.inf,),
    Histogram: (0, -jnp.inf),
  }
  found: Metrics = {}
  for name, metric in metrics.items():
    values = least.get(type(metric), (0,) * len(metric))
    pairs = zip(metric, values, strict=True)
    found[name] = type(metric)(*(jnp.full(x.shape, v, x.dtype) for x, v in pairs))
  return found


def pool(metrics: Mapping[str, Metric], axis_name: str | tuple[str, ...]) -> Metrics:
  """Pools metrics over the shards of a `shard_map`, a `pmap` or a `vmap`.

  `lax.psum` of them would add up extrema and lose spreads; this is exact.

  Args:
    metrics: of one shard.
    axis_name: the mapped axis, or axes.

  Returns:
    The metrics of all of them, on every shard.

  >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  >>> parts = lambda x: pool({"x": mean(x, x > 0), "max": maximum(x, x > 0)}, "rows")
  >>> pooled = jax.vmap(parts, axis_name="rows")(x)
  >>> pooled["x"].total.tolist(), pooled["max"].value.tolist()
  ([12.0, 12.0], [6.0, 6.0])
  """
  return merge_stacked(jax.lax.all_gather(dict(metrics), axis_name))


def finalize(metrics: Mapping[str, Metric]) -> dict[str, jax.Array]:
  """Plain scalars: each metric's value under its name, extras under `name/extra`.

  >>> finalize({"tokens": total(jnp.ones(3))})
  {'tokens': Array(3., ...)}
  """
  _check_dict("finalize", metrics)
  return {
    f"{name}/{extra}" if extra else name: value
    for name, metric in metrics.items()
    for extra, value in metric.finalize().items()
  }


def quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """A quotient that is 0, not NaN, when nothing was counted."""
  empty = denominator == 0
  return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, denominator))


def _check_dict(function: str, metrics: Any) -> None:
  if isinstance(metrics, Mapping):
    return
  if isinstance(metrics, (list, tuple)) and not hasattr(metrics, "pooled"):
    raise TypeError(
      "dicts of metrics are merged one by one: merge(*parts), and "
      "finalize(merge(*parts)) gives plain numbers"
    )
  raise TypeError(
    f"{function} takes a dict of metrics, got a {type(metrics).__name__}; "
    'finalize({"name": metric}) gives the numbers of one'
  )


def _count(mask: Array) -> jax.Array:
  return mask.sum(dtype=jnp.float32)
