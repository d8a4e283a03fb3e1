"""The gap in log-odds: as large at a sure token as at an open one.

A token of probability p has the log-odds log(p / (1 - p)). An error in a logit, from
rounding or from another update, moves them by about the error itself, however sure the
policy is, where it moves the log-prob by 1 - p of that. A temperature divides the
logits, so it multiplies the log-odds (exactly where there are two outcomes), and moves
the sure tokens most, whose log-probs hardly move at all.
"""

from typing import NamedTuple

import numpy as np

from tis_jax.doctor.evidence import Tokens, correlation

DOUBT = 1e-5
"""1 - p below which a log-prob is mostly its own rounding, and log-odds end."""
SMALLEST = 2e-3
"""Nats of mean |d| below which its shape is not looked at."""
BINS = 12


class Odds(NamedTuple):
  """Of the tokens that neither side is sure of to `DOUBT`.

  Attributes:
    level: the mean of both sides' log-odds, nats.
    gap: the learner's less the sampler's.
    agreement: the correlation between the two.
  """

  level: np.ndarray
  gap: np.ndarray
  agreement: float


def doubt(logp: np.ndarray) -> np.ndarray:
  """1 - p; 0 for a log-prob of 0 and above.

  >>> doubt(np.log([0.25, 1.0])).tolist()
  [0.75, 0.0]
  """
  return -np.expm1(np.minimum(logp, 0.0))


def grain(values: np.ndarray) -> float:
  """What log-probs were rounded to: a power of ten, or 0.

  >>> grain(np.array([-0.125, -3.5])), grain(np.array([-0.123456, -3.5]))
  (0.001, 0.0)
  """
  for digits in range(1, 6):
    scaled = values * 10**digits
    of_fp32 = 0.01 + 1e-7 * np.abs(scaled)
    if len(values) and (np.abs(scaled - scaled.round()) < of_fp32).all():
      return 10.0**-digits
  return 0.0


def odds(tokens: Tokens) -> Odds:
  """Both sides' log-odds, side by side.

  Of log-probs that were rounded, the tokens whose doubt is thirty times what they were
  rounded to.
  """
  least = max(DOUBT, 30 * max(grain(tokens.learner), grain(tokens.sampler)))
  unsure = np.minimum(doubt(tokens.learner), doubt(tokens.sampler)) > least
  learner, sampler = (
    x[unsure] - np.log(doubt(x[unsure])) for x in (tokens.learner, tokens.sampler)
  )
  return Odds((learner + sampler) / 2, learner - sampler, correlation(learner, sampler))


def moved(tokens: Tokens) -> np.ndarray:
  """|gap| of every token in log-odds, which are held where `DOUBT` ends them.

  What stands out in it is off by more than other tokens are, and not merely less sure.
  """
  learner, sampler = (
    np.minimum(x, 0.0) - np.log(np.maximum(doubt(x), DOUBT))
    for x in (tokens.learner, tokens.sampler)
  )
  return np.abs(learner - sampler)


def followed(found: Odds) -> float:
  """The share of the gap's variance that follows from the level, as measured on others.

  In bins of equal counts, by whatever curve; around 0 for what rounding leaves, which
  knows nothing of how sure the policy is.
  """
  level, gap = found.level, found.gap
  count = len(gap)
  if count < 5 * BINS:
    return 0.0
  bins = np.array_split(np.argsort(level, kind="stable"), BINS)
  left = sum(((gap[part] - gap[part].mean()) ** 2).sum() for part in bins)
  total = ((gap - gap.mean()) ** 2).sum()
  return float(1 - (left / (count - BINS)) / (total / (count - 1))) if total else 0.0


class Factor(NamedTuple):
  """A straight line through the gap against the level.

  Attributes:
    share: of the gap's variance that it explains.
    times: what the sampler's log-odds are multiplied by to be the learner's; NaN where
      no factor makes such a line.
    crosses: whether it changes sign among the tokens: what a temperature takes from
      some, it gives to others.
  """

  share: float
  times: float
  crosses: bool


def factor(found: Odds) -> Factor:
  """The factor on the log-odds that fits the gap best.

  Two outcomes at a temperature of a half on the learner's side:

  >>> sampler = np.array([0.5, 1.0, 2.0, -1.0])
  >>> round(factor(Odds(1.5 * sampler, sampler, 1.0)).times, 6)
  2.0
  """
  level, gap = found.level, found.gap
  spread = ((level - level.mean()) ** 2).sum() if len(level) else 0.0
  total = ((gap - gap.mean()) ** 2).sum() if len(gap) else 0.0
  if spread == 0 or total == 0:
    return Factor(0.0, float("nan"), False)
  slope = float((gap * (level - level.mean())).sum() / spread)
  line = gap.mean() + slope * (np.quantile(level, (0.02, 0.98)) - level.mean())
  # times * s - s = slope * (times * s + s) / 2, for the sampler's log-odds s.
  times = (2 + slope) / (2 - slope) if abs(slope) < 2 else float("nan")
  return Factor(float(slope**2 * spread / total), times, bool(line[0] * line[1] < 0))
