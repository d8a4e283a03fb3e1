"""Structured mismatch has the moments that it says, and leaves the learner alone."""

import numpy as np
import pytest

from tis_jax.lab import mismatched, random_problem

PROBLEM = random_problem(2, 5, noise=0.0)
DEPTH = np.repeat(np.arange(5), 2 ** np.arange(5))
# Row r follows row (r - 1) // 2; its first token is that of row 1, or of row 2.
PARENT = (np.arange(31) - 1) // 2
FIRST = np.array(
  [-1, *(b for t in range(1, 5) for b in np.repeat([0, 1], 2 ** (t - 1)))]
)


def errors(**structure):
  """`[seeds, rows]`: how far the two tokens of a row are apart, a standard normal."""
  found = []
  for seed in range(4000):
    problem = mismatched(PROBLEM, 0.5, seed=seed, **structure)
    found.append((problem.sampler - problem.learner) @ [1, -1])
  return np.array(found) / 0.5 / np.sqrt(2)


def test_a_sampler_is_a_law_and_the_learner_is_as_it_was():
  problem = mismatched(PROBLEM, 0.5, correlation=0.5, offset=0.5, trend=0.5)
  np.testing.assert_allclose(np.exp(problem.sampler).sum(1), 1, rtol=1e-12)
  np.testing.assert_array_equal(problem.learner, PROBLEM.learner)
  same = mismatched(PROBLEM, 0.0).sampler
  np.testing.assert_allclose(same, PROBLEM.learner, rtol=1e-12)


@pytest.mark.parametrize("trend", [0.0, 0.6, -1.0])
def test_the_spread_follows_the_place(trend):
  spread = errors(trend=trend, correlation=0.7, offset=0.3).std(axis=0)
  want = 1 + trend * (DEPTH / 2 - 1)
  np.testing.assert_allclose(spread, want, rtol=0.06, atol=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.8, -0.5])
def test_neighbours_are_as_alike_as_asked(correlation):
  covariance = np.cov(errors(correlation=correlation).T)
  one = covariance[np.arange(1, 31), PARENT[1:]]
  np.testing.assert_allclose(one, correlation, atol=0.07)
  two = covariance[np.arange(3, 31), PARENT[PARENT[3:]]]
  np.testing.assert_allclose(two, correlation**2, atol=0.07)


@pytest.mark.parametrize("offset", [0.3, 1.0])
def test_a_sequence_shares_its_offset_and_others_have_another(offset):
  covariance = np.cov(errors(offset=offset).T)
  same = FIRST[:, None] == FIRST
  np.testing.assert_allclose(
    covariance, np.where(same, offset, 0) + (1 - offset) * np.eye(31), atol=0.08
  )


def test_what_is_out_of_range_is_refused():
  with pytest.raises(ValueError, match="offset must be at least 0 and at most 1"):
    mismatched(PROBLEM, offset=1.5)
