"""Structured errors, a sampler that lags, and where it leads, side by side."""

from typing import NamedTuple

import numpy as np

from tis_jax.corrections import Chain, chain, importance, presets
from tis_jax.lab.bias_table import Row, row
from tis_jax.lab.drift import ascend, drifted
from tis_jax.lab.enumerable import Problem, exact, random_problem
from tis_jax.lab.mismatch import mismatched

_PLAIN: dict[str, Chain] = {
  "no correction": chain(),
  "token IS": chain(importance("token")),
  "tis(2)": presets.tis(),
  "icepop(5, 0.5)": presets.icepop(),
  "kpop(0.1)": presets.kpop(),
}
CORRECTIONS: dict[str, tuple[Chain, int]] = {
  **{name: (correct, 0) for name, correct in _PLAIN.items()},
  "no correction, centred": (chain(), 3),
  "no correction, centred by a head of 1": (chain(), 1),
  "tis(2), centred": (presets.tis(), 3),
  "icepop(5, 0.5), centred": (presets.icepop(), 3),
  "kpop(0.1), centred": (presets.kpop(), 3),
  "minpro(2)": (presets.minpro(), 0),
  "geometric_mask(1.1)": (presets.geometric_mask(1.1, 1 / 1.1), 0),
  "seq_tis(2)": (presets.seq_tis(), 0),
  "seq_is()": (presets.seq_is(), 0),
}
"""Corrections, each with how many tokens it is centred by (of a vocabulary of 3)."""

STRUCTURES: dict[str, dict[str, float]] = {
  "independent": {},
  "along the sequence": {"correlation": 0.9},
  "by sequence": {"offset": 1.0},
  "growing": {"trend": 1.0},
}
"""Structures of the sampler's error, as `mismatched` takes them."""


class Ways(NamedTuple):
  """One correction: how far runs of updates have come.

  Attributes:
    name: the correction.
    shares: of the way from the first expected reward to the best sequence's, one for
      each number of updates asked for, averaged over the runs.
  """

  name: str
  shares: tuple[float, ...]


def structured_table(
  noise: float = 0.3, *, length: int = 7, seeds: int = 4
) -> list[tuple[str, tuple[float, ...]]]:
  """The bias of each of `CORRECTIONS` under errors of one size and each structure.

  Args:
    noise: the standard deviation of the errors in the logits.
    length: of the sequences, of three tokens.
    seeds: how many random policies the numbers are averaged over.

  Returns:
    `(correction, biases)`, one for each of `STRUCTURES`.
  """
  problems = {
    name: [
      mismatched(random_problem(3, length, seed=seed), noise, seed=seed, **structure)
      for seed in range(seeds)
    ]
    for name, structure in STRUCTURES.items()
  }
  return [
    (
      name,
      tuple(
        float(np.mean([exact(p, correct, centered=head).relative_bias for p in found]))
        for found in problems.values()
      ),
    )
    for name, (correct, head) in CORRECTIONS.items()
  ]


def lag_table(
  lag: int,
  *,
  noise: float = 0.0,
  rate: float = 1.0,
  length: int = 7,
  seeds: int = 4,
  samples: tuple[int, ...] = (100, 1000, 10000),
) -> list[Row]:
  """What each of `CORRECTIONS` does to the gradient with a sampler that lags.

  The baseline is the sampler's expected reward, as the mean of a group is.

  Args:
    lag: exact updates that the sampler is behind.
    noise: the standard deviation of its own errors, on top.
    rate: the step of an update.
    length: of the sequences, of three tokens.
    seeds: how many random policies the numbers are averaged over.
    samples: batch sizes for the errors.

  Returns:
    One `Row` a correction.
  """
  problems = [
    drifted(random_problem(3, length, noise=noise, seed=seed), lag, rate=rate)
    for seed in range(seeds)
  ]
  return [
    row(
      name,
      [exact(p, correct, baseline="sampler", centered=head) for p in problems],
      samples,
    )
    for name, (correct, head) in CORRECTIONS.items()
  ]


def ascent_table(
  lag: int,
  *,
  noise: float = 0.0,
  rate: float = 1.0,
  length: int = 5,
  steps: tuple[int, ...] = (25, 50, 100, 200),
  seeds: int = 4,
  samples: int | None = None,
  runs: int = 1,
) -> list[Ways]:
  """How far updates under each of `CORRECTIONS` have come, with a sampler that lags.

  Args:
    lag: updates that the sampler is behind.
    noise: the standard deviation of its own errors, the same all along.
    rate: the step of an update.
    length: of the sequences, of three tokens.
    steps: numbers of updates to report.
    seeds: how many random policies the numbers are averaged over.
    samples: sequences an update; None takes the expected update.
    runs: with samples, how many runs of each policy.

  Returns:
    One `Ways` a correction.
  """
  problems = [random_problem(3, length, noise=noise, seed=s) for s in range(seeds)]

  def shares(problem: Problem, correct: Chain, head: int, seed: int) -> np.ndarray:
    found = ascend(
      problem,
      correct,
      steps=max(steps),
      rate=rate,
      lag=lag,
      centered=head,
      samples=samples,
      seed=seed,
    ).rewards
    return (found[list(steps)] - found[0]) / (problem.rewards.max() - found[0])

  return [
    Ways(
      name,
      tuple(
        np.mean(
          [shares(p, correct, head, seed) for p in problems for seed in range(runs)],
          axis=0,
        ).tolist()
      ),
    )
    for name, (correct, head) in CORRECTIONS.items()
  ]
