"""What a diagnosis hands over."""

import dataclasses
import math
from typing import Any

from tis_jax.doctor.evidence import Scale


@dataclasses.dataclass(frozen=True)
class Place:
  """A token of a transcript.

  Attributes:
    column: in the dump.
    token: its id, or None.
    old_logp: the learner's, nats; None where it is not known.
    sampler_logp: likewise.
    marked: whether it shows the fault.
  """

  column: int
  token: int | None
  old_logp: float | None
  sampler_logp: float | None
  marked: bool


@dataclasses.dataclass(frozen=True)
class Transcript:
  """A row, or the part of it that shows a fault.

  Attributes:
    row: in the dump.
    tokens: of the row that train.
    places: the part that is shown.
  """

  row: int
  tokens: int
  places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
  """The outcome of one test.

  Attributes:
    kind: one of `tis_jax.doctor.VERDICTS`, or of `tis_jax.doctor.REMARKS`.
    score: statistic over threshold; found from 1 on.
    statistic: what was measured.
    threshold: at which it counts as found.
    measured: what the statistic is.
    confidence: the share of random halves of the rows in which it is found.
    evidence: a sentence with numbers.
    rows: the three that show it best.
    means: the finding in a sentence.
    cause: what it usually comes from.
    do: the next step.
    link: a report of the same from the field.
  """

  kind: str
  score: float
  statistic: float
  threshold: float
  measured: str
  confidence: float
  evidence: str
  rows: tuple[Transcript, ...]
  means: str
  cause: str
  do: str
  link: str

  @property
  def found(self) -> bool:
    """Whether the statistic is past its threshold."""
    return self.score >= 1

  @property
  def limit(self) -> str:
    """From where on it counts as found, in words."""
    falling = (self.statistic <= self.threshold) == self.found
    return f"{self.threshold:.3g} or {'less' if falling else 'more'}"


@dataclasses.dataclass(frozen=True)
class Report:
  """A diagnosis.

  Attributes:
    verdict: one of `tis_jax.doctor.VERDICTS`.
    confidence: the share of random halves of the rows that come to the same.
    findings: of every test that has something to say, the verdict's first.
    scale: the gap in numbers.
    source: what was read.
    columns: which column of it became which field.
    notes: on what was assumed or left out.
  """

  verdict: str
  confidence: float
  findings: tuple[Finding, ...]
  scale: Scale
  source: str
  columns: dict[str, str]
  notes: tuple[str, ...]

  @property
  def finding(self) -> Finding:
    """That of the verdict."""
    return self.findings[0]

  @property
  def healthy(self) -> bool:
    """Whether there is nothing to mend: healthy, or numerics alone."""
    return self.verdict in ("healthy", "numerics")

  def to_json(self) -> dict[str, Any]:
    """One object of numbers, text, lists and dicts; NaN as None."""
    return plain(
      {
        "verdict": self.verdict,
        "confidence": self.confidence,
        "source": self.source,
        "columns": self.columns,
        "notes": self.notes,
        "scale": self.scale._asdict(),
        "findings": [dataclasses.asdict(finding) for finding in self.findings],
      }
    )


def plain(value: Any) -> Any:
  """`value` in what JSON knows.

  >>> plain({"a": (1.5, float("nan"))})
  {'a': [1.5, None]}
  """
  if isinstance(value, dict):
    return {str(key): plain(x) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
