"""Log-probs of another law over the same tokens: temperature, support, no logarithm.

Three facts tell them from numerics and from a stale sampler. Where the sampler's
log-probs are of the law that the tokens were drawn from, the ratio learner/sampler is 1
on average, however far the two policies are apart. A log-prob renormalised over kept
tokens is too high and never too low, so that mean is below 1. And a temperature
multiplies log-odds: the gap grows with them, where numerics and updates leave it free.
"""

import numpy as np

from tis_jax.doctor.evidence import UNLIKE, Evidence, Tokens
from tis_jax.doctor.odds import SMALLEST, factor, odds
from tis_jax.doctor.suspicion import Suspicion, places

EXPLAINED = 0.5
"""Share of the gap's variance, in log-odds, that one factor on them explains."""
MISSING_MASS = 4.0
"""Standard errors that the mean ratio is below 1."""
ONE_SIDED = 0.45
"""Nats above zero for each below, at most, where the support is at fault."""
UNLOGGED = 0.4
"""Share of log-probs above 0."""
SHOWS = 0.7
"""Standard errors of the mean gap from which its sign says which law drew."""
SURELY = 2.0
"""The same from which it says so for certain, and the other law is not named."""


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
  return [*([] if shown is None else [shown]), *tempered(evidence, shown)]


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


def tempered(evidence: Evidence, support: Suspicion | None) -> list[Suspicion]:
  """Log-probs of another temperature: one factor on all log-odds."""
  tokens = evidence.tokens
  where = places(evidence.dump.shape, tokens, np.abs(tokens.gap))
  scaled, slope = proportional(tokens)
  if scaled > 0.97 and abs(slope) > 0.02:
    return [
      Suspicion(
        "temperature",
        scaled,
        0.97,
        "share of the gap that a factor on the log-probs explains",
        f"the learner's log-probs are {1 / (1 - slope):.3g} times the sampler's, all "
        "of them: divided by a temperature after the softmax, or in another base",
        where,
      )
    ]
  both = odds(tokens)
  fit = factor(both)
  possible = both.agreement > UNLIKE and len(both.gap) >= 60 and fit.crosses
  if not possible or np.isnan(fit.times) or (support is not None and support.found):
    return []
  sharper = fit.times < 1  # the sampler's law
  drawn_by = side_that_drew(tokens.gap)
  whose = {
    "sampler": "the tokens are drawn from the law that the sampler's log-probs are of",
    "learner": "the tokens are drawn from the learner's law, not from that of the "
    "sampler's log-probs",
    "": "which of the two laws the tokens are of does not show",
  }[drawn_by]
  text = (
    f"the learner's log-odds are {fit.times:.3g} times the sampler's, whose law is the "
    f"{'sharper' if sharper else 'flatter'} one, and the factor alone explains "
    f"{fit.share:.0%} of the gap; {whose}"
  )
  measured = "share of the gap in log-odds that a factor on them explains"
  tell = lambda kind: Suspicion(kind, fit.share, EXPLAINED, measured, text, where)
  kind = _kind(evidence, drawn_by, sharper)
  other = _kind(evidence, "sampler" if drawn_by == "learner" else "learner", sharper)
  surely = abs(errors_from_zero(tokens.gap)) >= SURELY
  return [tell(kind)] if surely or other == kind else [tell(kind), tell(other)]


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
  errors = errors_from_zero(gap)
  if abs(errors) < SHOWS:
    return ""
  return "sampler" if errors < 0 else "learner"


def errors_from_zero(gap: np.ndarray) -> float:
  """The mean gap in standard errors; 0 where it does not vary."""
  error = gap.std(ddof=1) / np.sqrt(len(gap))
  return float(gap.mean() / error) if error else 0.0
