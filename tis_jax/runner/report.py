"""An evaluation as numbers with intervals, a table, and JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tis_jax.runner.evaluate import Sampled
from tis_jax.runner.passes import majority_at_k, pass_at_k
from tis_jax.runner.statistics import Interval, interval


class Scores(NamedTuple):
  """What one precision's answers came to.

  Attributes:
    by_prompt: `{"reward" | "pass@K" | "maj@K": float64 [N]}`.
    length: mean tokens an answer.
    unrewarded: answers whose reward raised, hung or was no number; they count as wrong.
  """

  by_prompt: Mapping[str, np.ndarray]
  length: float
  unrewarded: int

  def intervals(self) -> dict[str, Interval]:
    """Means over prompts with 95% intervals, by Student's t."""
    return {name: interval(values.tolist()) for name, values in self.by_prompt.items()}


@dataclasses.dataclass(frozen=True)
class Report:
  """An evaluation.

  Attributes:
    about: what was evaluated: task, split, prompts, samples, where from.
    scores: by precision, all of the same prompts.
    notes: sentences to be said with it.
  """

  about: Mapping[str, Any]
  scores: Mapping[str, Scores]
  notes: tuple[str, ...] = ()

  def differences(self) -> dict[str, dict[str, Interval]]:
    """Of each precision to the first one, paired by prompt."""
    first, *others = self.scores
    return {
      f"{other} - {first}": {
        name: interval((values - self.scores[first].by_prompt[name]).tolist())
        for name, values in self.scores[other].by_prompt.items()
      }
      for other in others
    }

  def as_text(self) -> str:
    """Notes, and a table with a column a precision and a difference."""
    columns = {name: scores.intervals() for name, scores in self.scores.items()}
    columns |= self.differences()
    measures = list(next(iter(columns.values())))
    rows = [["", *columns]]
    rows += [[name, *(_shown(x[name]) for x in columns.values())] for name in measures]
    plain = {
      "tokens an answer": [f"{x.length:.1f}" for x in self.scores.values()],
      "without a reward": [str(x.unrewarded) for x in self.scores.values()],
    }
    empty = [""] * (len(columns) - len(self.scores))
    rows += [[name, *values, *empty] for name, values in plain.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
      "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
      for row in rows
    ]
    about = ", ".join(f"{name} {value}" for name, value in self.about.items())
    return "\n".join((about, *self.notes, *(line.rstrip() for line in lines)))

  def as_json(self) -> dict[str, Any]:
    """All of it, for a file; an interval is `{"mean", "half", "count"}`."""
    return {
      **self.about,
      "scores": {
        name: {
          **_plain(scores.intervals()),
          "length": scores.length,
          "unrewarded": scores.unrewarded,
        }
        for name, scores in self.scores.items()
      },
      "differences": {name: _plain(x) for name, x in self.differences().items()},
    }


def scored(sampled: Sampled, ks: Sequence[int], passes: float = 1.0) -> Scores:
  """Answers as scores.

  Args:
    sampled: with answers.
    ks: of pass@k and, from 3 on, maj@k.
    passes: an answer is right whose reward is at least this.

  Raises:
    ValueError: a k that is larger than there are answers a prompt.

  >>> rewards = np.array([[1, 0, 1.0], [0, np.nan, 0]])
  >>> found = Sampled(rewards, np.ones((2, 3)), [["7", "8", "7"], ["1", "2", None]])
  >>> scores = scored(found, [1, 3])
  >>> {name: float(x.mean()) for name, x in scores.by_prompt.items()}
  {'reward': 0.333..., 'pass@1': 0.333..., 'pass@3': 0.5, 'maj@3': 0.5}
  >>> scores.unrewarded
  1
  """
  missing = ~np.isfinite(sampled.rewards)
  rewards = np.where(missing, 0.0, sampled.rewards)
  passed = ~missing & (rewards >= passes)
  by_prompt = {"reward": rewards.mean(axis=1)}
  by_prompt |= {f"pass@{k}": pass_at_k(passed, k) for k in ks}
  by_prompt |= {
    f"maj@{k}": majority_at_k(passed, sampled.answers, k) for k in ks if k > 2
  }
  return Scores(by_prompt, float(sampled.lengths.mean()), int(missing.sum()))


def _plain(found: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
  return {
    name: {k: v if np.isfinite(v) else None for k, v in x._asdict().items()}
    for name, x in found.items()
  }


def _shown(found: Interval) -> str:
  # Values that are all alike have no interval.
  return f"{found.mean:.4f}" + (f" ± {found.half:.4f}" if found.half > 0 else "")
