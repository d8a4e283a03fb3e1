"""The sampling side of DAPO."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.advantages import shaping


def test_soft_overlong_penalty_is_a_ramp():
  lengths = np.array([0, 80, 81, 90, 100, 500])
  got = shaping.soft_overlong_penalty(lengths, max_length=100, buffer=20, factor=2.0)
  np.testing.assert_allclose(got, [0, 0, -0.1, -1.0, -2.0, -2.0], rtol=1e-6)
  for buffer in (0, 101):
    with pytest.raises(ValueError, match="buffer must be above 0"):
      shaping.soft_overlong_penalty(lengths, max_length=100, buffer=buffer)


def test_overlong_filter_drops_whole_rows():
  mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
  got = shaping.overlong_filter(mask, np.array([0, 1, 0]))
  np.testing.assert_array_equal(got, [[1, 1, 0], [0, 0, 0], [1, 1, 1]])
  with pytest.raises(ValueError, match="truncated"):
    shaping.overlong_filter(mask, np.array([0, 1]))


IDS = np.array([3, -1, 3, 8, -1, 8, 5, 3], np.int32)
REWARDS = np.array([1.0, 0.1, 1.0, 0.0, 0.1, 1.0, 1.0, 1.0], np.float32)


def test_has_variance_marks_the_groups_that_can_learn():
  want = [i == 8 for i in IDS]
  np.testing.assert_array_equal(shaping.has_variance(REWARDS, IDS), want)
  # A row that does not count hides its group's only difference.
  where = np.arange(8) != 3
  assert not shaping.has_variance(REWARDS, IDS, where=where).any()
  # And may hold anything.
  rewards = np.where(np.arange(8) == 0, np.nan, REWARDS)
  got = shaping.has_variance(rewards, IDS, where=np.arange(8) != 0)
  np.testing.assert_array_equal(got, want)
  loose = shaping.has_variance(REWARDS, IDS, tolerance=1.0)
  assert not loose.any()


def test_has_variance_on_a_mesh():
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
      placed = (jax.device_put(x, rows) for x in (REWARDS, IDS))
      got = jax.jit(shaping.has_variance)(*placed)
    np.testing.assert_array_equal(got, IDS == 8)


def test_keep_groups_takes_whole_groups_in_order():
  keep = np.array([1, 1, 1, 0, 1, 1, 1, 1])
  np.testing.assert_array_equal(shaping.groups_of_rows(keep, IDS), [0, 1, 2, 4, 6, 7])
  np.testing.assert_array_equal(shaping.groups_of_rows(keep, IDS, groups=1), [0, 2, 7])
  assert shaping.groups_of_rows(np.zeros(8), IDS).size == 0
  with pytest.raises(ValueError, match="must both be"):
    shaping.groups_of_rows(keep[:3], IDS)
