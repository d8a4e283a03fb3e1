"""What is left when no fault shows: how large the gap is, and what is that large.

Measured, with the params of the moment on both sides: `docs/atlas.md` (SmolLM2-135M,
64 tokens an answer) and `docs/metrics.md` (0.66M parameters, answers of 4 tokens). The
bounds are about twice the larger of the two.
"""

import numpy as np

from tis_jax.doctor.evidence import UNLIKE, Evidence, Scale
from tis_jax.doctor.odds import SMALLEST, followed, odds
from tis_jax.doctor.suspicion import Suspicion

ROUNDING = 1e-3
"""Mean |d| up to which both sides are as good as equal, nats."""

BOUNDS: dict[str, tuple[float, float]] = {
  "float32": (2e-3, 3e-5),
  "bfloat16": (0.06, 2.5e-3),
  "float16": (0.02, 5e-4),
  "int8": (0.14, 0.012),
  "float8": (0.14, 0.012),
  "int4": (2.5, 2.5),
}
"""Mean |d| and k3 that a fresh sampler in a dtype may reach."""

UNSAID = "int8"
"""The dtype whose bounds hold where nobody said which it was."""

FAR_OFF = 0.6
"""Mean |d|, as a share of what the tokens cost (minus their mean log-prob), above which
they are, whatever the correlation: 1.2 nats in open text, 0.2 of a policy that is
nearly sure."""
FOLLOWS = 0.25
"""Share of the gap in log-odds that follows from them, which rounding does not do."""


def by_size(evidence: Evidence) -> list[Suspicion]:
  """What the size alone says: healthy, numerics, staleness, other params or model."""
  scale = evidence.scale
  dtype = precision(evidence.dump.sampler_dtype)
  bound = BOUNDS[dtype or UNSAID]
  over = max(scale.mean_abs / bound[0], scale.k3 / bound[1])
  share = followed(odds(evidence.tokens)) if scale.mean_abs >= SMALLEST else 0.0
  lag = staleness(evidence)
  where = _rows(evidence)
  numbers = (
    f"mean |d| {scale.mean_abs:.3g} nats, k3 {scale.k3:.3g}, correlation "
    f"{scale.correlation:.3f}"
  )

  def suspect(kind, statistic, threshold, measured, text, falling=False):
    return Suspicion(
      kind, statistic, threshold, measured, f"{numbers}: {text}", where, falling
    )

  alike = "mean |d|, nats"
  if scale.mean_abs <= ROUNDING and over <= 1:
    text = "what two programs in fp32 differ by"
    return [suspect("healthy", scale.mean_abs, ROUNDING, alike, text, falling=True)]
  if over <= 1 and share < FOLLOWS:
    text = f"what {_like(scale, dtype)} differs by"
    return [suspect("numerics", scale.mean_abs, bound[0], alike, text, falling=True)]
  apart, relative = 1 - scale.correlation, _relative(evidence)
  text = "the two sides do not say the same of the tokens"
  unlike = suspect("other_model", apart, 1 - UNLIKE, "1 - correlation", text)
  far = suspect(
    "other_model", relative, FAR_OFF, "mean |d| over minus the mean log-prob", text
  )
  if unlike.found or far.found:
    return [max(unlike, far, key=lambda x: x.score)]
  if over > 1:
    how = (over, 1.0, "times what the sampler's dtype gives")
    beyond = f"{over:.1f} times what {dtype or 'an int8 sampler'} gives at most"
  else:
    how = (share, FOLLOWS, "share of the gap in log-odds that follows from them")
    beyond = (
      f"no more than {dtype or 'an int8 sampler'} gives, but {share:.0%} of the gap "
      "follows from how sure the policy is, of which rounding knows nothing"
    )
  old = suspect("staleness", *how, f"{beyond}; {_lag_said(lag)}")
  wrong = suspect(
    "stale_weights",
    *how,
    f"{beyond}, and {_lag_said(lag)}"
    + ("" if lag is None else ": params that are not what the sampler says"),
  )
  if lag is None:
    # Which of the two it is, the versions would say: the other is named second.
    return [old, wrong]
  return [old] if lag > 0 else [wrong]


def precision(said: str) -> str:
  """The entry of `BOUNDS` that a sampler's dtype, in words, is of; "" for none.

  >>> precision("int8 params, bfloat16 activations"), precision("torch.bfloat16")
  ('int8', 'bfloat16')
  """
  words = said.lower()
  for name, also in _NAMES.items():
    if any(word in words for word in also):
      return name
  return ""


_NAMES = {
  "int4": ("int4", "q4", "nf4", "awq", "gptq"),
  "int8": ("int8", "q8"),
  "float8": ("float8", "fp8", "e4m3", "e5m2"),
  "bfloat16": ("bfloat16", "bf16"),
  "float16": ("float16", "fp16", "half"),
  "float32": ("float32", "fp32", "f32", "single"),
}


def staleness(evidence: Evidence) -> float | None:
  """The mean staleness of the tokens that train; None where versions are not known."""
  lag = evidence.dump.staleness
  return None if lag is None else float(lag[evidence.dump.mask].mean())


def _lag_said(lag: float | None) -> str:
  if lag is None:
    return "no versions say how old the sampler's params were"
  return (
    f"the sampler is {lag:.2g} versions behind"
    if lag > 0
    else ("every token is of the learner's own version")
  )


def _like(scale: Scale, dtype: str) -> str:
  """The dtypes that make a gap so large."""
  if dtype:
    return f"a sampler in {dtype}"
  if scale.mean_abs <= 0.045 and scale.k3 <= BOUNDS["bfloat16"][1]:
    return "a bf16 sampler (or an int8 one of a very small model)"
  return "an int8 or fp8 sampler (or a bf16 one that is a version behind)"


def _relative(evidence: Evidence) -> float:
  """Mean |d| over what the tokens cost: minus their mean log-prob, of both sides."""
  tokens = evidence.tokens
  cost = -float((tokens.learner + tokens.sampler).mean()) / 2
  return evidence.scale.mean_abs / cost if cost > 0 else 0.0


def _rows(evidence: Evidence) -> np.ndarray:
  """`[B, T]`: |d| of each token, so that the rows that are furthest off are shown."""
  tokens = evidence.tokens
  table = np.zeros(evidence.dump.shape)
  table[tokens.row, tokens.column] = np.abs(tokens.gap)
  return table
