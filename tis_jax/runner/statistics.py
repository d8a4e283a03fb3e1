"""Several seeds as one number, and how far it can be trusted."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

COLLAPSE = 0.10
"""A run that ends further below its base than this has collapsed."""


class Interval(NamedTuple):
  """A mean and its 95% confidence interval, `mean ± half`.

  Attributes:
    mean: of the values; NaN of none.
    half: half the interval's width, NaN of fewer than two values.
    count: of values.
  """

  mean: float
  half: float
  count: int


def interval(values: Sequence[float]) -> Interval:
  """Mean and 95% interval of independent values, by Student's t.

      half = t(0.975, n - 1) s / sqrt(n)

  >>> interval([0.70, 0.74, 0.75])
  Interval(mean=0.73, half=0.0657..., count=3)
  >>> interval([7.76, 7.76, 7.76]).half
  0.0
  """
  n = len(values)
  if n == 0:
    return Interval(np.nan, np.nan, 0)
  half = np.nan
  if n > 1:
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    if len(set(values)) == 1:
      half = 0.0  # Not the rounding of the mean.
  return Interval(float(np.mean(values)), half, n)


def paired(values: Mapping[str, float], others: Mapping[str, float]) -> Interval:
  """The interval of `values - others`, over the seeds that both have.

  Runs of one seed have the same prompts in the same order, and the same held-out
  noise: what they share is not in the difference.

  >>> paired({"0": 0.75, "1": 0.74, "2": 0.1}, {"0": 0.70, "1": 0.68, "3": 0.2})
  Interval(mean=0.055, half=0.0635..., count=2)
  """
  return interval([values[seed] - others[seed] for seed in values if seed in others])


def dip(summary: Mapping[str, float]) -> float:
  """How far below its base the run was at its lowest evaluation; 0 if it never was.

  >>> dip({"pass_at_1/base": 0.5, "pass_at_1/lowest": 0.375})
  -0.125
  """
  return summary["pass_at_1/lowest"] - summary["pass_at_1/base"]


def collapsed(summary: Mapping[str, float]) -> bool:
  """Whether a run ends more than `COLLAPSE` below its base.

  >>> collapsed({"pass_at_1/base": 0.5, "pass_at_1/final": 0.39})
  True
  """
  return summary["pass_at_1/base"] - summary["pass_at_1/final"] > COLLAPSE
