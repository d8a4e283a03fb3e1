"""What every test of a dump starts from: its tokens side by side, and their scale."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from tis_jax.doctor.dump import Dump

CERTAIN = -0.02
"""A log-prob above it is of a token that was all but certain: gaps are small there."""
UNLIKE = 0.6
"""Correlation of both sides' log-probs below which they are of two models."""
FAR = 20.0
"""Nats that a single token's difference is held to, as in the corrections."""


class Tokens(NamedTuple):
  """The tokens that train and have both log-probs, in the order of rows and places.

  Attributes:
    row: of the dump.
    column: of the dump.
    place: 0 for the first token of its row that trains, ...
    from_end: 0 for the last one, ...
    learner: log-prob, nats.
    sampler: log-prob, nats.
  """

  row: np.ndarray
  column: np.ndarray
  place: np.ndarray
  from_end: np.ndarray
  learner: np.ndarray
  sampler: np.ndarray

  @property
  def gap(self) -> np.ndarray:
    """`learner - sampler`, held to ±20 nats."""
    return np.clip(self.learner - self.sampler, -FAR, FAR)

  def __len__(self) -> int:
    return len(self.row)


@dataclasses.dataclass(frozen=True)
class Evidence:
  """A dump, taken apart once.

  Attributes:
    dump: of which it is.
  """

  dump: Dump

  @functools.cached_property
  def places(self) -> tuple[np.ndarray, np.ndarray]:
    """`[B, T]` twice: each token's place among those of its row, and from the end."""
    count = self.dump.mask.cumsum(axis=1)
    return count - 1, count[:, -1:] - count

  @functools.cached_property
  def tokens(self) -> Tokens:
    """Those that can be compared."""
    dump = self.dump
    both = np.isfinite(dump.old_logp) & np.isfinite(dump.sampler_logp)
    return self._where(dump.mask & both)

  @functools.cached_property
  def lost(self) -> Tokens:
    """Those that train and lack the sampler's log-prob (NaN or infinite)."""
    return self._where(self.dump.mask & ~np.isfinite(self.dump.sampler_logp))

  def _where(self, chosen) -> Tokens:
    row, column = np.nonzero(chosen)
    place, from_end = self.places
    at = (row, column)
    return Tokens(
      row,
      column,
      place[at],
      from_end[at],
      self.dump.old_logp[at],
      self.dump.sampler_logp[at],
    )

  @functools.cached_property
  def scale(self) -> "Scale":
    """How large the gap is."""
    return measure(self.tokens, len(self.dump.mask))

  @functools.cached_property
  def typical(self) -> float:
    """The median |d| of the tokens that were not all but certain, nats."""
    return typical_gap(self.tokens)


def typical_gap(tokens: Tokens) -> float:
  """The median |d| where either side was uncertain; that of all where none was."""
  gap = np.abs(tokens.gap)
  uncertain = np.minimum(tokens.learner, tokens.sampler) < CERTAIN
  if uncertain.sum() >= 8:
    gap = gap[uncertain]
  return float(np.median(gap)) if len(gap) else 0.0


class Scale(NamedTuple):
  """The gap in numbers, as `docs/metrics.md` has them.

  Attributes:
    tokens: that were compared.
    rows: that have one.
    mean_abs: E |d|, nats, d the learner's log-prob less the sampler's.
    max_abs: the largest |d|.
    k1: E [-d].
    k3: E [exp(d) - 1 - d].
    ratio_mean: E [exp(d)], 1 in expectation where the tokens are the sampler's.
    ess: share of the tokens that importance weights would leave.
    ess_sequence: share of the rows that products of them would leave.
    correlation: between both sides' log-probs.
    outside: share of ratios outside [0.9, 1.1].
  """

  tokens: int
  rows: int
  mean_abs: float
  max_abs: float
  k1: float
  k3: float
  ratio_mean: float
  ess: float
  ess_sequence: float
  correlation: float
  outside: float


def measure(tokens: Tokens, rows: int) -> Scale:
  """The scale of the gap of some tokens, of a dump with `rows` rows."""
  if not len(tokens):
    nan = float("nan")
    return Scale(0, 0, nan, nan, nan, nan, nan, nan, nan, nan, nan)
  gap = tokens.gap
  ratio = np.exp(gap)
  sums = np.bincount(tokens.row, gap, minlength=rows)
  filled = np.bincount(tokens.row, minlength=rows) > 0
  product = np.exp(np.clip(sums[filled], -FAR, FAR))
  return Scale(
    tokens=len(gap),
    rows=int(filled.sum()),
    mean_abs=float(np.abs(gap).mean()),
    max_abs=float(np.abs(gap).max()),
    k1=float(-gap.mean()),
    k3=float((np.expm1(gap) - gap).mean()),
    ratio_mean=float(ratio.mean()),
    ess=_ess(ratio),
    ess_sequence=_ess(product),
    correlation=correlation(tokens.learner, tokens.sampler),
    outside=float(((ratio < 0.9) | (ratio > 1.1)).mean()),
  )


def _ess(weight: np.ndarray) -> float:
  return float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Pearson's; 0 where either side does not vary.

  >>> correlation(np.array([0.0, 1.0]), np.array([2.0, 4.0]))
  1.0
  """
  if len(a) < 2:
    return 0.0
  a, b = a - a.mean(), b - b.mean()
  spread = np.sqrt((a**2).sum() * (b**2).sum())
  return float(np.clip((a * b).sum() / spread, -1, 1)) if spread > 0 else 0.0
