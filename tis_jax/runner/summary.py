"""The few numbers that a run comes to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tis_jax.runner.figures import read_columns

# Averaged over the run's steps.
_MEANS = (
  "mismatch/k3",
  "weight/ess_raw",
  "weight/ess",
  "staleness/mean",
  "time/wait",
  "time/update",
)


def summarize(
  workdir: Path,
  base: Mapping[str, float],
  final: Mapping[str, float],
  counts: Mapping[str, int],
  seconds: float,
) -> dict[str, Any]:
  """The summary of a finished run, flat.

  Args:
    workdir: has `metrics.jsonl`.
    base: evaluation before the first step.
    final: after the last.
    counts: of rollouts.
    seconds: wall time, all attempts.
  """
  columns = read_columns(workdir / "metrics.jsonl")
  gain = final["eval/pass_at_1"] - base["eval/pass_at_1"]
  summary = {
    "pass_at_1/base": base["eval/pass_at_1"],
    "pass_at_1/final": final["eval/pass_at_1"],
    "pass_at_1/gain": gain,
    # Of all evaluations, so at most the base.
    "pass_at_1/lowest": float(np.nanmin(columns["eval/pass_at_1"])),
    "pass_at_1/stderr": final["eval/pass_at_1_stderr"],
    "wall_seconds": round(seconds, 1),
    "steps": int(columns["step"].max()),
    "tokens": int(np.nansum(columns["tokens/count"])),
  }
  summary |= {name: int(value) for name, value in counts.items()}
  means = {name: columns[name] for name in _MEANS if name in columns}
  return summary | {name: float(np.nanmean(x)) for name, x in means.items()}
