"""Log-odds: what a temperature and what an error in the logits make of them."""

import numpy as np
import pytest

from tis_jax.doctor.evidence import Tokens
from tis_jax.doctor.odds import factor, followed, moved, odds


def tokens_of(learner, sampler) -> Tokens:
  place = np.arange(len(learner))
  return Tokens(0 * place, place, place, place[::-1], learner, sampler)


def of_two(log_odds):
  """The log-prob of one of two outcomes."""
  return -np.logaddexp(0.0, -log_odds)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.3])
def test_a_temperature_between_two_outcomes_is_a_factor(temperature):
  x = np.linspace(-6, 6, 101)
  found = factor(odds(tokens_of(of_two(x / temperature), of_two(x))))
  assert found.times == pytest.approx(1 / temperature)
  assert found.share == pytest.approx(1.0)
  assert found.crosses


def test_an_error_in_the_logits_is_as_large_at_a_sure_token():
  rng = np.random.default_rng(0)
  x = np.linspace(-2.0, 10.0, 6000)
  noise = 0.05 * rng.normal(size=x.shape)
  both = tokens_of(of_two(x + noise), of_two(x))
  by_level = moved(both).reshape(3, 2000).mean(axis=1)
  np.testing.assert_allclose(by_level, 0.05 * np.sqrt(2 / np.pi), rtol=0.05)
  assert abs(followed(odds(both))) < 0.02
  assert followed(odds(tokens_of(of_two(x + noise + 0.02 * x), of_two(x)))) > 0.5


def test_tokens_that_are_certain_are_left_out():
  learner = np.array([-1.234567, 0.0, -1e-7, -0.987654])
  assert len(odds(tokens_of(learner, learner[[0, 0, 0, 3]])).gap) == 2
