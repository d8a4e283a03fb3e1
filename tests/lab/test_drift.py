"""A sampler that lags: what is exact of it."""

import numpy as np
import pytest

from tis_jax.corrections import chain, importance, presets
from tis_jax.lab import ascend, drifted, exact, random_problem, true_gradient

PROBLEM = random_problem(3, 4, noise=0.0, seed=1)
OFF = random_problem(3, 4, noise=0.6, seed=1)


def test_a_drift_is_gradient_steps_of_the_learner_alone():
  assert drifted(OFF, 0) is OFF
  one = drifted(OFF, 1, rate=0.3)
  moved = one.learner - OFF.learner - 0.3 * true_gradient(OFF)
  # Logits are known up to a number a row.
  np.testing.assert_allclose(moved - moved[:, :1], 0, atol=1e-12)
  np.testing.assert_array_equal(one.sampler, OFF.sampler)
  both = drifted(drifted(OFF, 2), 3)
  np.testing.assert_allclose(both.learner, drifted(OFF, 5).learner, atol=1e-12)


def test_a_sampler_that_keeps_up_ascends_the_exact_gradient():
  found = ascend(PROBLEM, chain(), steps=6, rate=0.4)
  np.testing.assert_allclose(found.learner, drifted(PROBLEM, 6, rate=0.4).learner)
  later = [drifted(PROBLEM, i, rate=0.4) for i in range(7)]
  want = [p.probability(p.learner) @ p.rewards for p in later]
  np.testing.assert_allclose(found.rewards, want, rtol=1e-12)
  assert (np.diff(found.rewards) > 0).all()


@pytest.mark.parametrize("lag", [1, 4, 50])
def test_the_whole_ratio_undoes_any_lag_and_any_error(lag):
  correct = chain(importance("sequence"))
  want = ascend(PROBLEM, chain(), steps=12).rewards
  for problem in (PROBLEM, OFF):
    found = ascend(problem, correct, steps=12, lag=lag).rewards
    np.testing.assert_allclose(found, want, rtol=1e-9)
  without = ascend(PROBLEM, chain(), steps=12, lag=lag).rewards
  assert np.abs(without - want).max() > 0.01


def test_the_sampler_is_as_far_behind_as_asked():
  """Update 4 under a lag of 3 is the estimate with the sampler of update 1."""
  run = [ascend(PROBLEM, chain(), steps=n, lag=3).learner for n in (1, 4, 5)]
  at = PROBLEM._replace(learner=run[1], sampler=run[0])
  # `exact` takes the learner's baseline, and the estimate has the sampler's.
  chance = at.probability(at.sampler)
  estimate = np.zeros_like(at.learner)
  advantages = at.rewards - chance @ at.rewards
  for n in range(len(chance)):
    for node, token in zip(at.nodes[n], at.tokens[n], strict=True):
      estimate[node] -= chance[n] * advantages[n] * np.exp(at.learner[node])
      estimate[node, token] += chance[n] * advantages[n]
  moved = run[2] - run[1] - estimate
  np.testing.assert_allclose(moved - moved[:, :1], 0, atol=1e-12)
  assert np.abs(estimate - true_gradient(at)).max() > 1e-3


def test_samples_converge_to_the_expectation():
  want = ascend(OFF, presets.tis(), steps=3, lag=1)
  errors = [
    np.abs(
      ascend(OFF, presets.tis(), steps=3, lag=1, samples=n, seed=2).rewards
      - want.rewards
    ).max()
    for n in (200, 2_000_000)
  ]
  assert errors[1] < 2e-3 < errors[0]


def test_a_lag_biases_all_but_the_whole_ratio():
  problem = drifted(PROBLEM, 5, rate=1.0)
  found = exact(problem, presets.tis())
  assert exact(problem, presets.seq_is()).relative_bias < 1e-10
  assert found.relative_bias > 0.05


def test_what_has_no_meaning_is_refused():
  with pytest.raises(ValueError, match="use exact_batch"):
    ascend(PROBLEM, presets.adaptive(), steps=1)
  with pytest.raises(ValueError, match="lag must be at least 0"):
    drifted(PROBLEM, -1)
