"""What is left when no fault shows: how large the gap is, and what is that large.

Measured, with the params of the moment on both sides: `docs/atlas.md` (SmolLM2-135M,
64 tokens an answer) and `docs/metrics.md` (0.66M parameters, answers of 4 tokens). The
bounds are about twice the larger of the two.
"""

import numpy as np

from tis_jax.doctor.evidence import Evidence, Scale
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

UNLIKE = 0.6
"""Correlation of both sides' log-probs below which they are of two models."""
FAR_OFF = 0.8
"""Mean |d| above which they are, whatever the correlation."""


def by_size(evidence: Evidence) -> list[Suspicion]:
  """What the size alone says: healthy, numerics, staleness, other params or model."""
  scale = evidence.scale
  dtype = precision(evidence.dump.sampler_dtype)
  bound = BOUNDS[dtype or UNSAID]
  over = max(scale.mean_abs / bound[0], scale.k3 / bound[1])
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
  if over <= 1:
    text = f"what {_like(scale, dtype)} differs by"
    return [suspect("numerics", scale.mean_abs, bound[0], alike, text, falling=True)]
  apart = 1 - scale.correlation
  if apart > 1 - UNLIKE or scale.mean_abs > FAR_OFF:
    text = "the two sides do not say the same of the tokens"
    if apart / (1 - UNLIKE) > scale.mean_abs / FAR_OFF:
      return [
        suspect("other_model", apart, 1 - UNLIKE, "1 - correlation of log-probs", text)
      ]
    return [suspect("other_model", scale.mean_abs, FAR_OFF, alike, text)]
  times = "times what the sampler's dtype gives"
  beyond = f"{over:.1f} times what {dtype or 'an int8 sampler'} gives at most"
  old = suspect("staleness", over, 1.0, times, f"{beyond}; {_lag_said(lag)}")
  wrong = suspect(
    "stale_weights",
    over,
    1.0,
    times,
    f"{beyond}, and {_lag_said(lag)}"
    + ("" if lag is None else ": params that are not what the sampler says"),
  )
  if lag is None:
    # Which of the two it is, the versions would say.
    return [old, _halved(wrong)]
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


def _halved(suspicion: Suspicion) -> Suspicion:
  """Named second: it would be as likely, if the sampler is said to be fresh."""
  return Suspicion(
    suspicion.kind,
    suspicion.statistic / 2,
    suspicion.threshold,
    suspicion.measured,
    suspicion.evidence,
    suspicion.where,
  )


def _rows(evidence: Evidence) -> np.ndarray:
  """`[B, T]`: |d| of each token, so that the rows that are furthest off are shown."""
  tokens = evidence.tokens
  table = np.zeros(evidence.dump.shape)
  table[tokens.row, tokens.column] = np.abs(tokens.gap)
  return table
