"""The figures of a run, drawn from its `metrics.jsonl` and weight histogram."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tis_jax.diagnostics import plots
from tis_jax.runner.logs import read_metrics

Columns = Mapping[str, np.ndarray]


def draw(workdir: Path) -> list[Path]:
  """Writes one PNG a panel and `overview.png` with all of them; returns their paths."""
  columns = read_columns(workdir / "metrics.jsonl")
  histogram = np.load(workdir / "weight_histogram.npz")
  panels: dict[str, Callable[[Axes], Axes]] = {
    "reward": lambda ax: _reward(ax, columns),
    "pass_at_1": lambda ax: _pass_at_1(ax, columns),
    "mismatch": lambda ax: _mismatch(ax, columns),
    "effective_sample_size": lambda ax: _effective_sample_size(ax, columns),
    "weights": lambda ax: _weights(ax, histogram),
    "staleness": lambda ax: _staleness(ax, columns),
  }
  folder = workdir / "figures"
  folder.mkdir(exist_ok=True)
  paths = []
  with mpl.rc_context({"figure.dpi": 130, "font.family": "DejaVu Sans"}):
    for name, panel in panels.items():
      figure = Figure(figsize=(4.6, 3.2), layout="constrained")
      panel(figure.subplots())
      paths.append(folder / f"{name}.png")
      figure.savefig(paths[-1])
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    for ax, panel in zip(figure.subplots(2, 3).flat, panels.values(), strict=True):
      panel(ax)
    paths.append(folder / "overview.png")
    figure.savefig(paths[-1])
  return paths


def read_columns(path: Path) -> Columns:
  """`metrics.jsonl` as one array a name; NaN where a step has no value."""
  rows = read_metrics(path)
  names = sorted({name for row in rows for name in row})
  return {
    name: np.array([np.nan if row.get(name) is None else row[name] for row in rows])
    for name in names
  }


def _series(columns: Columns, labels: Mapping[str, str]) -> tuple[np.ndarray, dict]:
  """The steps at which the first of the named columns has values, and its values."""
  there = ~np.isnan(columns[next(iter(labels))])
  return columns["step"][there], {
    label: columns[name][there] for name, label in labels.items()
  }


def _reward(ax: Axes, columns: Columns) -> Axes:
  steps, series = _series(
    columns,
    {
      "reward/mean": "as sampled",
      "reward/learner_normalized": "importance-weighted to the learner",
    },
  )
  return plots.curves(ax, steps, series, title="Reward", ylabel="mean", smooth=10)


def _pass_at_1(ax: Axes, columns: Columns) -> Axes:
  name = "eval/pass_at_1"
  there = ~np.isnan(columns[name])
  ax.errorbar(
    columns["step"][there],
    columns[name][there],
    yerr=2 * columns[f"{name}_stderr"][there],
    color=plots.COLORS[2],
    linewidth=1.6,
    marker="o",
    markersize=3.5,
    capsize=2,
  )
  return plots.style(
    ax, "Held-out pass@1 (±2 standard errors)", "learner step", "pass@1"
  )


def _mismatch(ax: Axes, columns: Columns) -> Axes:
  steps, series = _series(
    columns, {"mismatch/k3": "sampler to learner", "mismatch/k3_reverse": "reverse"}
  )
  plots.curves(ax, steps, series, title="Mismatch KL", ylabel="nats a token", smooth=10)
  ax.set_yscale("log")
  return ax


def _effective_sample_size(ax: Axes, columns: Columns) -> Axes:
  steps, series = _series(
    columns, {"weight/ess_raw": "raw weights", "weight/ess": "applied weights"}
  )
  title = "Effective sample size"
  return plots.curves(ax, steps, series, title=title, ylabel="fraction", smooth=10)


def _weights(ax: Axes, histogram: Mapping[str, np.ndarray]) -> Axes:
  counts = {"raw ratios": histogram["raw"], "applied": histogram["applied"]}
  plots.counts_histogram(ax, histogram["edges"], counts).set_xscale("log")
  return ax


def _staleness(ax: Axes, columns: Columns) -> Axes:
  steps, series = _series(columns, {"staleness/mean": "mean", "staleness/max": "max"})
  title = "Staleness"
  return plots.curves(ax, steps, series, title=title, ylabel="versions")
