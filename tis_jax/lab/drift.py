"""A sampler that lags: exact updates of the learner, and where they lead.

Noise is drawn anew and averages out. A sampler that is k updates behind is off in the
one direction that the learner has just gone, and what a biased estimate adds comes back
as the next sampler: only a run of updates shows whether it adds up.
"""

from typing import NamedTuple

import numpy as np

from tis_jax.corrections import Chain
from tis_jax.lab.enumerable import Problem, log_softmax, true_gradient, updates
from tis_jax.numerics.checks import check_number


class Ascent(NamedTuple):
  """A run of updates.

  Attributes:
    rewards: `[steps + 1]` the learner's exact expected reward, before the first update
      and after each.
    learner: `[S, V]` the log-probs that it ends with.
  """

  rewards: np.ndarray
  learner: np.ndarray


def drifted(problem: Problem, lag: int, *, rate: float = 1.0) -> Problem:
  """The problem `lag` exact updates later, with the sampler where it was.

  Each update adds `rate` times the true gradient to the learner's logits. The error of
  the sampler, if it has one, comes on top: make it with `noise=0` for drift alone.

  Args:
    problem: of which both policies are at the start.
    lag: updates that the learner is ahead.
    rate: the step.

  Returns:
    `problem` with another learner.

  Raises:
    ValueError: a negative lag, or a rate that is not above 0.

  >>> from tis_jax.lab import random_problem
  >>> problem = random_problem(2, 3, noise=0.0)
  >>> later = drifted(problem, 4, rate=0.5)
  >>> bool((later.sampler == problem.sampler).all())
  True
  >>> rewards = [p.probability(p.learner) @ p.rewards for p in (problem, later)]
  >>> bool(rewards[0] < rewards[1])
  True
  """
  check_number("lag", lag, at_least=0)
  check_number("rate", rate, above=0)
  for _ in range(lag):
    gradient = true_gradient(problem)
    problem = problem._replace(learner=log_softmax(problem.learner + rate * gradient))
  return problem


def ascend(
  problem: Problem,
  correct: Chain,
  *,
  steps: int = 100,
  rate: float = 1.0,
  lag: int = 0,
  centered: int = 0,
  samples: int | None = None,
  seed: int = 0,
) -> Ascent:
  """Updates under a correction, with a sampler that is `lag` of them behind.

  Update i adds `rate` times the estimate to the learner's logits. Its sequences come
  from the learner before update `i - lag` (the first, where there was none yet), with
  the error that the problem's sampler has beside its learner. Advantages are rewards
  less their mean over what is sampled, as those of a group are.

  Args:
    problem: where it starts.
    correct: the corrector.
    steps: updates.
    rate: the step.
    lag: updates that the sampler is behind.
    centered: how many of the sampler's most probable tokens the estimate is centred
      with, see `exact`.
    samples: sequences an update; None takes the expectation of the estimate.
    seed: for the samples.

  Returns:
    `Ascent`.

  Raises:
    ValueError: a corrector that pools over the batch, or a number outside its range.

  >>> from tis_jax.corrections import presets
  >>> from tis_jax.lab import random_problem
  >>> found = ascend(random_problem(2, 3), presets.tis(), steps=20, lag=4)
  >>> bool(found.rewards[-1] > found.rewards[0]), found.rewards.shape
  (True, (21,))
  """
  check_number("steps", steps, at_least=0)
  check_number("rate", rate, above=0)
  check_number("lag", lag, at_least=0)
  if samples is not None:
    check_number("samples", samples, at_least=1)
  rng = np.random.default_rng(seed)
  error = problem.sampler - problem.learner
  past = [problem.learner]
  rewards = [problem.probability(problem.learner) @ problem.rewards]
  for step in range(steps):
    behind = past[max(step - lag, 0)]
    now = problem._replace(learner=past[-1], sampler=log_softmax(behind + error))
    share = now.probability(now.sampler)
    if samples is not None:
      drawn = rng.multinomial(samples, share / share.sum())
      share = drawn / samples
    advantages = now.rewards - share @ now.rewards
    found = updates(now, correct, advantages[:, None], centered=centered)
    estimate = found.mean(now, share)
    past.append(log_softmax(now.learner + rate * estimate))
    rewards.append(now.probability(past[-1]) @ now.rewards)
  return Ascent(np.array(rewards), past[-1])
