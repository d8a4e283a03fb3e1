"""Figures of whole runs, laid over each other: from their metrics files."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tis_jax.diagnostics.plots.frame import ARM_COLORS, style
from tis_jax.diagnostics.plots.series import trailing_mean

PANELS = {
  "reward/mean": ("Reward", "mean", False),
  "mismatch/k3": ("Mismatch KL (k3)", "nats a token", True),
  "weight/ess": ("Effective sample size", "share", False),
  "rejected/tokens": ("Rejected tokens", "share", False),
  "optimizer/grad_norm": ("Gradient norm", "norm", True),
  "staleness/mean": ("Staleness", "versions", False),
}
"""Metric -> title, unit, whether the axis is logarithmic."""


def runs_figure(runs: Mapping[str, str | Path], *, smooth: int = 10) -> Figure:
  """Six panels over the learner's steps, a line a run.

  Args:
    runs: name -> a `metrics.jsonl`: one object a line with `step` and numbers.
    smooth: window of a trailing mean; the raw values stay behind it, faint.

  Raises:
    ValueError: a file holds none of the metrics.
  """
  read = {name: _rows(Path(path)) for name, path in runs.items()}
  figure = Figure(figsize=(12.5, 6.4), layout="constrained")
  for ax, (metric, (title, unit, log)) in zip(
    figure.subplots(2, 3).flat, PANELS.items(), strict=True
  ):
    if log:
      ax.set_yscale("log")
    for color, (name, rows) in zip(ARM_COLORS, read.items(), strict=False):
      found = [
        (row["step"], row[metric]) for row in rows if row.get(metric) is not None
      ]
      if found:
        steps, values = np.array(found, float).T
        ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
        mean = trailing_mean(values, smooth)
        ax.plot(steps, mean, color=color, linewidth=1.5, label=name)
    style(ax, title, "learner step", unit)
  if len(read) > 1:
    figure.legend(
      *figure.axes[0].get_legend_handles_labels(),
      loc="outside upper center",
      ncols=min(len(read), 6),
      frameon=False,
      fontsize=9,
    )
  return figure


def _rows(path: Path) -> list[dict]:
  rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
  if not any(name in row for row in rows for name in PANELS):
    raise ValueError(f"{path} holds none of {', '.join(PANELS)}")
  return rows
