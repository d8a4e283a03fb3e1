"""Metrics that pool exactly, and keep their precision where fp32 would lose it."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tis_jax.numerics.metrics import (
  EffectiveSampleSize,
  Metric,
  finalize,
  fraction,
  histogram,
  maximum,
  mean,
  mean_of_sums,
  merge,
  merge_stacked,
  minimum,
  ratio,
  total,
)

EDGES = np.linspace(-3, 3, 25)


def measure(x, mask):
  return {
    "mean": mean(x, mask),
    "about_one": mean(x, mask, pivot=1.0),
    "fraction": fraction(x > 0, mask),
    "ratio": ratio(jnp.where(mask, x, 0).sum(), mask.sum()),
    "total": total(x, mask),
    "max": maximum(x, mask),
    "min": minimum(x, mask),
    "ess": ess(jnp.exp(x), mask),
    "histogram": histogram(x, mask, EDGES),
  }


def ess(weight, mask):
  weight = jnp.where(mask != 0, weight, 0.0)
  count = (mask != 0).sum(dtype=jnp.float32)
  return EffectiveSampleSize(weight.sum(), (weight**2).sum(), count)


compiled, numbers, pool = jax.jit(measure), jax.jit(finalize), jax.jit(merge)


def batch(seed, shape=(6, 8)):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape).astype(np.float32)
  mask = rng.random(shape) < rng.random()
  return np.where(mask, x, rng.choice([np.nan, np.inf, -1e30])), mask


def close(found, expected):
  assert found.keys() == expected.keys()
  for name, value in found.items():
    # A spread is known to the root of fp32 of the items' distance from the pivot.
    atol = 3e-3 if name.endswith(("std", "stderr")) else 1e-5
    np.testing.assert_allclose(
      value, expected[name], rtol=1e-4, atol=atol, err_msg=name
    )


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_values_are_those_of_numpy(seed):
  x, mask = batch(seed)
  found = numbers(compiled(x, mask))
  kept = x[mask].astype(np.float64)
  n = len(kept)
  if n == 0:
    assert all(np.isfinite(v) for v in found.values())
    assert found["mean"] == found["max"] == found["ess"] == 0
    return
  w = np.exp(kept)
  close(
    {k: v for k, v in found.items() if not k.startswith("histogram")},
    {
      "mean": kept.mean(),
      "mean/std": kept.std(),
      "mean/stderr": kept.std() / np.sqrt(n),
      "about_one": kept.mean(),
      "about_one/std": kept.std(),
      "about_one/stderr": kept.std() / np.sqrt(n),
      "fraction": (kept > 0).mean(),
      "fraction/std": (kept > 0).std(),
      "fraction/stderr": (kept > 0).std() / np.sqrt(n),
      "ratio": kept.mean(),
      "total": kept.sum(),
      "max": kept.max(),
      "min": kept.min(),
      "ess": w.sum() ** 2 / (n * (w**2).sum()),
    },
  )


@given(st.integers(0, 2**31 - 1), st.permutations(range(3)))
@settings(max_examples=25, deadline=None)
def test_parts_pool_to_the_whole_in_any_order(seed, order):
  x, mask = batch(seed)
  whole = numbers(compiled(x, mask))
  parts = [compiled(x[2 * i : 2 * i + 2], mask[2 * i : 2 * i + 2]) for i in order]
  close(numbers(pool(*parts)), whole)
  close(numbers(pool(pool(*parts[:2]), parts[2])), whole)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *parts)
  close(
    numbers(jax.jit(merge_stacked, static_argnames="axis")(stacked, axis=-1)), whole
  )


def test_merging_one_part_changes_nothing():
  x, mask = batch(0)
  close(finalize(merge(measure(x, mask))), finalize(measure(x, mask)))


def test_merging_refuses_other_keys():
  one = {"a": total(jnp.ones(1))}
  with pytest.raises(ValueError, match=r"differ in their keys: \['a', 'b'\]"):
    merge(one, {"b": total(jnp.ones(1))})


@pytest.mark.parametrize(
  ("call", "says"),
  [
    (lambda parts: merge(parts), r"one by one: merge\(\*parts\), and finalize\("),
    (
      lambda parts: merge(*parts, parts[0]["a"]),
      "merge takes a dict of metrics, got",
    ),
    (lambda parts: merge(), "merge takes one dict of metrics or more"),
    (lambda parts: finalize(parts), r"finalize\(merge\(\*parts\)\) gives plain"),
    (lambda parts: finalize(parts[0]["a"]), r'finalize\({"name": metric}\)'),
  ],
)
def test_merging_and_finalizing_say_what_they_take(call, says):
  parts = [{"a": total(jnp.ones(1))}, {"a": total(jnp.ones(2))}]
  with pytest.raises(TypeError, match=says):
    call(parts)


@pytest.mark.parametrize("kind", typing.get_args(Metric))
@pytest.mark.parametrize("use", [float, int, "{:.3f}".format])
def test_a_metric_that_is_taken_for_a_number_says_finalize(use, kind):
  metric = kind(*(jnp.ones(()) for _ in kind._fields))
  with pytest.raises(TypeError, match=rf"a {kind.__name__} .*tis.finalize\("):
    use(metric)
  assert f"{metric}" == str(metric)


def test_the_spread_of_weights_near_one_survives_fp32():
  rng = np.random.default_rng(0)
  x = 1 + 1e-4 * rng.normal(size=(64, 1024))
  x = x.astype(np.float32)
  parts = [{"w": mean(row, np.ones_like(row), pivot=1.0)} for row in x]
  found = finalize(merge(*parts))
  np.testing.assert_allclose(found["w/std"], x.std(dtype=np.float64), rtol=1e-3)
  off = float(found["w"]) - x.mean(dtype=np.float64)
  assert abs(off) < 1e-7
  # A sum of squares would have nothing left: E[x^2] - E[x]^2 in fp32.
  naive = np.mean(x * x, dtype=np.float32) - np.mean(x, dtype=np.float32) ** 2
  assert not 0.5 < max(float(naive), 0.0) / 1e-8 < 2


def test_pooling_keeps_the_spread_between_far_apart_parts():
  far = [mean(np.float32([v, v + 0.5]), np.ones(2)) for v in (1e4, -1e4, 0.0)]
  found = finalize(merge(*({"x": m} for m in far)))
  values = np.array([1e4, 1e4 + 0.5, -1e4, -1e4 + 0.5, 0, 0.5])
  np.testing.assert_allclose(found["x/std"], values.std(), rtol=1e-5)


def test_equal_items_have_no_spread():
  found = finalize({"x": mean(np.full(7, 1.3, np.float32), np.ones(7))})
  assert found["x/std"] == found["x/stderr"] == 0


def test_sums_taken_elsewhere_make_the_same_mean():
  x = np.float32([1.5, 0.25, 1.0])
  deviation = x - 1
  found = mean_of_sums(deviation.sum(), (deviation**2).sum(), 3, pivot=1.0)
  for a, b in zip(found, mean(x, np.ones(3)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_percentiles_are_right_to_a_bin(seed):
  x, mask = batch(seed)
  found = finalize({"x": compiled(x, mask)["histogram"]})
  kept = np.clip(x[mask], EDGES[0] + 1e-6, EDGES[-1])
  for percent in (1, 5, 25, 50, 75, 95, 99):
    value = float(found[f"x/p{percent:02d}"])
    if not mask.any():
      assert value == 0
      continue
    exact = np.quantile(kept, percent / 100, method="inverted_cdf")
    assert abs(value - exact) <= (EDGES[1] - EDGES[0]) * 1.001


def test_histogram_counts_are_numpys():
  x, mask = batch(3)
  counts = histogram(jnp.asarray(x), jnp.asarray(mask), EDGES).counts
  inside = np.clip(x[mask], EDGES[0], EDGES[-1])
  np.testing.assert_array_equal(counts, np.histogram(inside, EDGES)[0])
  assert counts.sum() == mask.sum()
