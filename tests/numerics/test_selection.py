"""Selection by rank against numpy's sort."""

import chex
import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.numerics.selection import mean_at_most_mask, top_k_mask

SHAPE = (4, 6)
# Ties and signed zeros on purpose.
VALUES = st.sampled_from([-3.0, -1e-30, -0.0, 0.0, 0.5, 1.0, 1.0000001, 2.5, 1e30])
GRIDS = st.lists(VALUES, min_size=24, max_size=24).map(
  lambda x: np.array(x, np.float32).reshape(SHAPE)
)
MASKS = st.lists(st.booleans(), min_size=24, max_size=24).map(
  lambda x: np.array(x).reshape(SHAPE)
)
top_k = jax.jit(top_k_mask)
mean_at_most = jax.jit(mean_at_most_mask)


@settings(max_examples=100, deadline=None)
@given(GRIDS, MASKS, st.integers(0, 30))
def test_top_k_takes_exactly_k_the_largest_and_the_first_of_equals(scores, mask, k):
  got = np.asarray(top_k(scores, mask, k)).ravel()
  candidates = np.flatnonzero(mask)
  flat = scores.ravel()
  order = sorted(candidates, key=lambda i: (-flat[i], i))
  want = np.isin(np.arange(24), order[:k])
  np.testing.assert_array_equal(got, want)


@settings(max_examples=100, deadline=None)
@given(GRIDS, MASKS, st.sampled_from([0.0, 0.25, 0.7, 3.0]))
def test_mean_at_most_keeps_the_longest_ascending_prefix(values, mask, bound):
  values = np.abs(values)
  got = np.asarray(mean_at_most(values, mask, bound))
  kept = values[mask & got]
  dropped = values[mask & ~got]
  assert not (got & ~mask).any()
  if kept.size and dropped.size:
    assert kept.max() < dropped.min()
  assert kept.sum() <= bound * kept.size * (1 + 1e-6)
  if dropped.size:  # one more value, with its equals, would be too much
    more = np.append(kept, dropped[dropped == dropped.min()]).astype(np.float64)
    assert more.mean() > bound * (1 - 1e-6)


def test_nan_off_the_mask_and_no_retrace():
  scores = np.full(SHAPE, np.nan, np.float32)
  mask = np.zeros(SHAPE, bool)
  scores[1, 2], mask[1, 2] = -5.0, True
  run = jax.jit(chex.assert_max_traces(top_k_mask, n=1))
  for k in (1, 3):
    assert np.argwhere(run(scores, mask, k)).tolist() == [[1, 2]]


def test_sharded_equals_one_device():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 5, (8, 6)).astype(np.float32)
  mask = rng.random((8, 6)) < 0.7
  run = lambda s, m: (top_k_mask(s, m, 9), mean_at_most_mask(s, m, 1.2))
  want = run(scores, mask)
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
      both = NamedSharding(mesh, PartitionSpec("data", "model"))
      got = jax.jit(run)(jax.device_put(scores, both), jax.device_put(mask, both))
    jax.tree.map(np.testing.assert_array_equal, got, want)
