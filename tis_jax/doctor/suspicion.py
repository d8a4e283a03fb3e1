"""What a test of a dump says: how strongly it suspects a fault, and where."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Suspicion:
  """The outcome of one test.

  Attributes:
    kind: the fault, a word of `tis_jax.doctor.VERDICTS` or of `tis_jax.doctor.REMARKS`.
    statistic: what was measured.
    threshold: at which the fault counts as found.
    measured: what the statistic is, in words.
    evidence: a sentence with numbers.
    where: float `[B, T]`, how much each place shows it; 0 where it does not.
    falling: found where the statistic is at or below the threshold, not above.
  """

  kind: str
  statistic: float
  threshold: float
  measured: str
  evidence: str
  where: np.ndarray
  falling: bool = False

  @property
  def score(self) -> float:
    """Statistic over threshold (or the reverse): found from 1 on, at most 1,000.

    >>> Suspicion("support", -8.0, -4.0, "z", "", np.zeros((1, 1)), True).score
    2.0
    """
    over, under = self.statistic, self.threshold
    if self.falling and under > 0:
      over, under = under, over
      if under == 0:
        return 1000.0  # no gap at all
    if under == 0 or not np.isfinite(over):
      return 0.0
    return float(np.clip(over / under, 0, 1000))

  @property
  def found(self) -> bool:
    """Whether the statistic is past its threshold."""
    return self.score >= 1


def places(shape, tokens, values) -> np.ndarray:
  """`[B, T]` with a value at each of some tokens, and 0 elsewhere."""
  table = np.zeros(shape)
  table[tokens.row, tokens.column] = values
  return table
