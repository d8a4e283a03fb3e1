"""Held-out answers of a policy, and what they are worth."""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import numpy as np

from tis_jax.engines import Engine, play
from tis_jax.tasks import Environment


class Accuracy(NamedTuple):
  """Rewards of sampled answers, averaged.

  Attributes:
    pass_at_1: mean over prompts of the mean reward over samples.
    pass_at_1_stderr: of that mean, over prompts.
    pass_at_n: share of prompts that at least one of the samples gets right.
    length: mean tokens an answer.
    unrewarded: answers whose reward raised, hung or was no number; they count as 0.
  """

  pass_at_1: float
  pass_at_1_stderr: float
  pass_at_n: float
  length: float
  unrewarded: int = 0


class Sampled(NamedTuple):
  """Answers to N prompts, S each.

  Attributes:
    rewards: float64 `[N, S]`, NaN where there is none.
    lengths: int `[N, S]`, tokens.
    answers: N lists of S, what each answer says; None for nothing. Empty where nobody
      asked.
  """

  rewards: np.ndarray
  lengths: np.ndarray
  answers: list[list[Hashable]]


class Evaluation:
  """A fixed set of held-out prompts, sampled the same way at every call.

  The same noise is used each time, so the difference of two calls is the policies'.

  Args:
    environment: of held-out examples.
    prompts: how many of its prompts, evenly spread; 0 for all.
    samples: answers a prompt.
    seed: of the noise.
    rows: prompts times samples that are generated at once.
  """

  def __init__(
    self,
    environment: Environment,
    *,
    prompts: int,
    samples: int,
    seed: int = 0,
    rows: int = 1024,
  ):
    self._environment, self._samples, self._seed = environment, samples, seed
    self._chosen = _evenly(len(environment), prompts)
    self._prompts_at_once = max(1, min(rows // samples, self.size))

  @property
  def size(self) -> int:
    """How many prompts there are."""
    return len(self._chosen)

  def __call__(self, engine: Engine) -> Accuracy:
    """Samples answers by the params that the engine holds, and scores them."""
    found = self.sample(engine)
    missing = ~np.isfinite(found.rewards)
    rewards = np.where(missing, 0.0, found.rewards)
    means = rewards.mean(axis=1)
    spread = means.std(ddof=1) if self.size > 1 else 0.0
    return Accuracy(
      pass_at_1=float(means.mean()),
      pass_at_1_stderr=float(spread / np.sqrt(self.size)),
      pass_at_n=float((rewards > 0).any(axis=1).mean()),
      length=float(found.lengths.mean()),
      unrewarded=int(missing.sum()),
    )

  def sample(self, engine: Engine, *, answers: bool = False) -> Sampled:
    """Samples answers by the params that the engine holds.

    Args:
      engine: that holds params.
      answers: have what each one says, too (`Task.answer_of`).
    """
    starts = range(0, self.size, self._prompts_at_once)
    found = [self._sample(engine, start, answers) for start in starts]
    return Sampled(
      rewards=np.concatenate([part.rewards for part in found])[: self.size],
      lengths=np.concatenate([part.lengths for part in found])[: self.size],
      answers=[row for part in found for row in part.answers][: self.size],
    )

  def _sample(self, engine: Engine, start: int, answers: bool) -> Sampled:
    """Those to the prompts from `start` on."""
    # The last batch wraps around, so that all of them have one shape.
    index = self._chosen[(start + np.arange(self._prompts_at_once)) % self.size]
    rows, generation, rewards, *_ = play(
      engine,
      self._environment,
      index,
      samples=self._samples,
      key=jax.random.fold_in(jax.random.key(self._seed), start),
    )
    said: list[list[Hashable]] = []
    if answers:
      flat = self._environment.answers(rows, generation.tokens, generation.mask)
      said = [flat[i : i + self._samples] for i in range(0, len(flat), self._samples)]
    shape = (-1, self._samples)
    lengths = generation.mask.sum(axis=1)
    return Sampled(
      rewards.astype(np.float64).reshape(shape), lengths.reshape(shape), said
    )


def _evenly(size: int, wanted: int) -> np.ndarray:
  """At most `wanted` places, evenly spread over `size`; 0 wants all."""
  wanted = min(wanted or size, size)
  return np.linspace(0, size - 1, wanted).round().astype(int)
