"""Log-probs of another law over the same tokens: temperature, support, no logarithm.

Three facts tell them from numerics and from a stale sampler. Where the sampler's
log-probs are of the law that the tokens were drawn from, the ratio learner/sampler is 1
on average, however far the two policies are apart. A log-prob renormalised over kept
tokens is too high and never too low, so that mean is below 1. And a temperature moves
a log-prob by what the place's law makes of it: the gap follows from the log-prob, where
numerics and updates leave it free.
"""

import numpy as np

from tis_jax.doctor.evidence import Evidence, Tokens
from tis_jax.doctor.suspicion import Suspicion, places

EXPLAINED = 0.27
"""Share of the gap's variance that the log-probs themselves explain."""
MISSING_MASS = 4.0
"""Standard errors that the mean ratio is below 1."""
ONE_SIDED = 0.45
"""Nats above zero for each below, at most, where the support is at fault."""
UNLOGGED = 0.4
"""Share of log-probs above 0."""
SMALLEST = 2e-3
"""Nats of mean |d| below which no law is looked for."""
BINS = 12


def unlogged(evidence: Evidence) -> list[Suspicion]:
  """Probabilities where log-probs should be: between 0 and 1, and never below 0."""
  found = []
  tokens = evidence.tokens
  for side, whose in ((tokens.sampler, "sampler"), (tokens.learner, "learner")):
    if not len(side):
      continue
    positive = float((side > 1e-6).mean())
    probable = bool((side >= 0).all() and (side <= 1 + 1e-6).all())
    if positive > 0.5 * UNLOGGED:
      what = (
        f"the {whose}'s log-probs are all between 0 and 1: they are probabilities; "
        "take their logarithm"
        if probable
        else f"{positive:.1%} of the {whose}'s log-probs are above 0, which is no "
        "log-prob: a probability, a logit, or a loss (the sign turned round)"
      )
      found.append(
        Suspicion(
          "unprocessed",
          positive,
          UNLOGGED,
          "share of log-probs above 0",
          what,
          places(evidence.dump.shape, tokens, np.maximum(side, 0)),
        )
      )
  return found


def another_law(evidence: Evidence) -> list[Suspicion]:
  """Support, temperature and unprocessed log-probs, as far as the numbers show them."""
  tokens = evidence.tokens
  if len(tokens) < 60 or np.abs(tokens.gap).mean() < SMALLEST:
    return []
  shown = renormalised(evidence)
  return [x for x in (shown, tempered(evidence, shown)) if x is not None]


def renormalised(evidence: Evidence) -> Suspicion | None:
  """Log-probs over kept tokens alone: too high, by the logarithm of the kept mass."""
  tokens = evidence.tokens
  gap = tokens.gap
  above, below = np.maximum(gap, 0).mean(), np.maximum(-gap, 0).mean()
  ratio = np.exp(gap)
  error = ratio.std(ddof=1) / np.sqrt(len(ratio))
  if error == 0 or above > ONE_SIDED * below or np.abs(gap).mean() > 0.7:
    return None
  z = float((ratio.mean() - 1) / error)
  return Suspicion(
    "support",
    z,
    -MISSING_MASS,
    "standard errors of the mean ratio from 1",
    f"the sampler is {below:.3g} nats higher at the mean and {above:.3g} lower: the "
    f"mean ratio is {ratio.mean():.4f}, {abs(z):.1f} standard errors below the 1 of "
    f"any two laws over all tokens, as if {1 - ratio.mean():.1%} of the learner's "
    "probability lay on tokens that the sampler left out",
    places(evidence.dump.shape, tokens, np.maximum(-gap, 0)),
    falling=True,
  )


def tempered(evidence: Evidence, support: Suspicion | None) -> Suspicion | None:
  """Log-probs of another temperature: the gap is a function of them."""
  tokens = evidence.tokens
  level = (tokens.learner + tokens.sampler) / 2
  fit, low, high = explained(tokens.gap, level)
  scaled, slope = proportional(tokens)
  sharper = low > 0  # the learner gives unlikely tokens more
  ordered = low * high < 0
  if scaled > 0.97 and abs(slope) > 0.02:
    return Suspicion(
      "temperature",
      scaled,
      0.97,
      "share of the gap that a factor on the log-probs explains",
      f"the learner's log-probs are {1 / (1 - slope):.3g} times the sampler's, all of "
      "them: divided by a temperature after the softmax, or in another base",
      places(evidence.dump.shape, tokens, np.abs(tokens.gap)),
    )
  if not ordered or (support is not None and support.found):
    fit = 0.0
  drawn_by = side_that_drew(tokens.gap)
  which = "sharper" if sharper else "flatter"
  kind = _kind(evidence, drawn_by, sharper)
  text = (
    f"the sampler's law is {which} than the learner's: unlikely tokens are "
    f"{abs(low):.3g} nats {'lower' if sharper else 'higher'} with it, likely ones "
    f"{abs(high):.3g} {'higher' if sharper else 'lower'}, and the log-prob alone "
    f"explains {fit:.0%} of the gap"
  )
  whose = {
    "sampler": "the tokens are drawn from the law that the sampler's log-probs are of",
    "learner": "the tokens are drawn from the learner's law, not from that of the "
    "sampler's log-probs",
    "": "which of the two laws the tokens are of does not show",
  }[drawn_by]
  return Suspicion(
    kind,
    fit,
    EXPLAINED,
    "share of the gap's variance that the log-probs explain",
    f"{text}; {whose}",
    places(evidence.dump.shape, tokens, np.abs(tokens.gap)),
  )


def _kind(evidence: Evidence, drawn_by: str, sharper: bool) -> str:
  """Whose side is at fault: the learner's temperature, or raw log-probs.

  Raw log-probs are of temperature 1 beside tokens of another; the tokens then follow
  the learner, who has that temperature.
  """
  if drawn_by != "learner":
    return "temperature"
  known = evidence.dump.temperature
  if known is not None:
    return "temperature" if known == 1 else "unprocessed"
  return "temperature" if sharper else "unprocessed"


def explained(gap: np.ndarray, level: np.ndarray) -> tuple[float, float, float]:
  """How much of the gap's variance its level explains, in bins of equal counts.

  Returns:
    The share (as if measured on other tokens), and the mean gap of the least likely
    sixth and of the likely tokens that are not certain.
  """
  order = np.argsort(level, kind="stable")
  bins = np.array_split(order, BINS)
  means = np.array([gap[part].mean() for part in bins])
  left = sum(((gap[part] - m) ** 2).sum() for part, m in zip(bins, means, strict=True))
  total = ((gap - gap.mean()) ** 2).sum()
  if total == 0:
    return 0.0, 0.0, 0.0
  n = len(gap)
  share = 1 - (left / (n - BINS)) / (total / (n - 1))
  middle = means[4:11]
  return float(share), float(means[:2].mean()), float(middle[np.abs(middle).argmax()])


def proportional(tokens: Tokens) -> tuple[float, float]:
  """The share of the gap that a factor on the log-probs explains, and its slope."""
  learner, gap = tokens.learner, tokens.learner - tokens.sampler
  total = (gap**2).sum()
  power = (learner**2).sum()
  if total == 0 or power == 0:
    return 0.0, 0.0
  slope = (gap * learner).sum() / power
  return float(1 - ((gap - slope * learner) ** 2).sum() / total), float(slope)


def side_that_drew(gap: np.ndarray) -> str:
  """Which law the tokens are of: "sampler", "learner", or "" where it does not show.

  The sum of d is the log-likelihood ratio of the two laws for these tokens: it is
  -KL(sampler, learner) a token under the one and +KL(learner, sampler) under the
  other, and its sign the best test there is.

  >>> side_that_drew(np.array([0.5, -1.0] * 50))
  'sampler'
  """
  error = gap.std(ddof=1) / np.sqrt(len(gap))
  if error == 0 or abs(gap.mean()) < 0.7 * error:
    return ""
  return "sampler" if gap.mean() < 0 else "learner"
