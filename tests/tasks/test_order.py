"""The prompt order is a function of (size, seed, draw) and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tis_jax.tasks import prompt_order


@given(
  st.integers(1, 40), st.integers(0, 2**63), st.integers(0, 200), st.integers(0, 90)
)
def test_any_window_is_the_same_order(size, seed, start, count):
  whole = prompt_order(size, seed, 0, start + count)
  np.testing.assert_array_equal(prompt_order(size, seed, start, count), whole[start:])
  epochs = whole[: len(whole) // size * size].reshape(-1, size)
  np.testing.assert_array_equal(
    np.sort(epochs, 1), np.tile(np.arange(size), (len(epochs), 1))
  )


def test_seeds_and_epochs_differ():
  orders = {
    tuple(prompt_order(50, seed, 50 * e, 50)) for seed in (0, 1) for e in (0, 1)
  }
  assert len(orders) == 4


def test_the_order_never_changes_between_releases():
  assert prompt_order(7, 3, 0, 14).tolist() == [
    6,
    1,
    5,
    2,
    4,
    3,
    0,
    3,
    5,
    6,
    4,
    0,
    2,
    1,
  ]


def test_bad_arguments():
  with pytest.raises(ValueError, match="size=0"):
    prompt_order(0, 0, 0, 1)
  for bad in ((4, -1, 0, 1), (4, 0, -1, 1), (4, 0, 0, -1)):
    with pytest.raises(ValueError, match="negative"):
      prompt_order(*bad)
