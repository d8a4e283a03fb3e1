"""The figure of a study: its arms over each other, with bands over the seeds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tis_jax.diagnostics import plots
from tis_jax.runner.figures import Columns
from tis_jax.runner.statistics import interval
from tis_jax.runner.study.results import Result

_PASS, _PASS_TITLE = "eval/pass_at_1", "Held-out pass@1"
# More lines than that nobody tells apart.
_MOST_LINES = 6
_ENDS = {
  "pass_at_1/final": "Final pass@1",
  "pass_at_1/lowest": "Lowest pass@1",
  "mismatch/k3": "Mean mismatch (k3, nats)",
  "optimizer/grad_norm": "Mean gradient norm",
}

Runs = Sequence[tuple[Result, Columns]]
"""Runs that finished, and the metrics of their steps."""


def draw(path: Path, arms: Sequence[str], runs: Runs) -> None:
  """Writes a PNG. Lines are means over seeds, bands their 95% intervals.

  One point: pass@1, reward, mismatch, effective sample size, gradient norm and
  staleness over the steps; of more than six arms, what each came to. Several: pass@1
  over the steps at each of them, and where it ends.

  Args:
    path: of the PNG.
    arms: all names, in the order of the colours.
    runs: of the study, at least one.
  """
  points = list(dict.fromkeys(tuple(r.point.items()) for r, _ in runs))
  if len(points) == 1 and len(arms) > _MOST_LINES:
    _draw_ends(path, arms, [result for result, _ in runs])
    return
  panels: list[Callable[[Axes], object]]
  if len(points) == 1:
    draws = (_passes, _rewards, _mismatch, _sample_size, _grad_norm, _staleness)
    panels = [lambda ax, panel=panel: panel(ax, _by_arm(arms, runs)) for panel in draws]
  else:
    panels = [
      lambda ax, point=point: _passes(
        ax,
        _by_arm(arms, [run for run in runs if tuple(run[0].point.items()) == point]),
        ", ".join(f"{name} {value}" for name, value in _varied(point, points)),
      )
      for point in points
    ]
    panels.append(lambda ax: _ends(ax, arms, points, runs))
  wide = min(3, len(panels))
  tall = -(-len(panels) // wide)
  with mpl.rc_context({"figure.dpi": 130, "font.family": "DejaVu Sans"}):
    figure = Figure(figsize=(4.2 * wide, 3.1 * tall + 0.4), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(tall, wide)).flat)
    for ax, panel in zip(axes, panels, strict=False):
      panel(ax)
      if len(points) > 1:
        ax.sharey(axes[0])
    for ax in axes[len(panels) :]:
      ax.set_axis_off()
    if len(arms) > 1:
      handles, labels = axes[0].get_legend_handles_labels()
      figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(len(labels), 6),
        fontsize=9,
        frameon=False,
      )
    figure.savefig(path)


def _draw_ends(path: Path, arms: Sequence[str], results: Sequence[Result]) -> None:
  """A row an arm: a dot a run, and the mean with its 95% interval."""
  titles = {n: t for n, t in _ENDS.items() if all(n in r.summary for r in results)}
  with mpl.rc_context({"figure.dpi": 130, "font.family": "DejaVu Sans"}):
    size = (3.2 * len(titles) + 1.2, 0.27 * len(arms) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(titles), sharey=True))
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
      for row, arm in enumerate(arms):
        values = [r.summary[name] for r in results if r.arm == arm]
        color = plots.ARM_COLORS[0 if row else 1]
        found = interval(values)
        ax.plot(values, [row] * len(values), "o", color=color, alpha=0.35, ms=4)
        ax.errorbar(found.mean, row, xerr=found.half, fmt="|", color=color, ms=9)
      bases = {r.summary["pass_at_1/base"] for r in results}
      if name.startswith("pass_at_1/") and len(bases) == 1:
        ax.axvline(bases.pop(), color="0.6", linewidth=1, linestyle=":")
      plots.style(ax, title, "", "")
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    figure.savefig(path)


Arms = Mapping[str, Sequence[Columns]]


def _by_arm(arms: Sequence[str], runs: Runs) -> Arms:
  return {arm: [columns for r, columns in runs if r.arm == arm] for arm in arms}


def _bands(ax: Axes, arms: Arms, name: str, title: str, ylabel: str, **how) -> Axes:
  """One metric of all arms, at the steps that have it; the runs of an arm have one
  length."""
  found: dict[str, list[np.ndarray]] = {arm: [] for arm in arms}
  steps: list | np.ndarray = []
  for arm, runs in arms.items():
    for columns in runs:
      if name in columns:
        there = ~np.isnan(columns[name])
        steps = columns["step"][there]
        found[arm].append(columns[name][there])
  series = {arm: np.array(rows) for arm, rows in found.items()}
  return plots.bands(ax, steps, series, title=title, ylabel=ylabel, **how)


def _passes(ax: Axes, arms: Arms, title: str = _PASS_TITLE) -> Axes:
  return _bands(ax, arms, _PASS, title, "pass@1", marker="o")


def _rewards(ax: Axes, arms: Arms) -> Axes:
  names = {"reward/mean": ":", "reward/learner_normalized": "-"}
  for name, line in names.items():
    title = "Reward: as sampled (dotted), of the learner"
    _bands(ax, arms, name, title, "mean", line=line, smooth=10)
  return ax


def _mismatch(ax: Axes, arms: Arms) -> Axes:
  title = "Mismatch KL (k3)"
  return _bands(ax, arms, "mismatch/k3", title, "nats a token", smooth=10, log=True)


def _sample_size(ax: Axes, arms: Arms) -> Axes:
  title = "Effective sample size: raw (dotted), applied"
  _bands(ax, arms, "weight/ess_raw", title, "share", line=":", smooth=10)
  return _bands(ax, arms, "weight/ess", title, "share", smooth=10)


def _grad_norm(ax: Axes, arms: Arms) -> Axes:
  return _bands(ax, arms, "optimizer/grad_norm", "Gradient norm", "", smooth=10)


def _staleness(ax: Axes, arms: Arms) -> Axes:
  return _bands(ax, arms, "staleness/mean", "Staleness", "versions, mean")


def _ends(ax: Axes, arms: Sequence[str], points: Sequence[tuple], runs: Runs) -> Axes:
  """Final pass@1 of every arm at every point; a dot a run, a line through the means."""
  varied = [_varied(point, points) for point in points]
  labels = ["\n".join(value for _, value in point) for point in varied]
  for i, arm in enumerate(arms):
    color = plots.ARM_COLORS[i % len(plots.ARM_COLORS)]
    means = []
    for x, point in enumerate(points):
      ends = [
        r.summary["pass_at_1/final"]
        for r, _ in runs
        if r.arm == arm and tuple(r.point.items()) == point
      ]
      ax.plot([x] * len(ends), ends, "o", color=color, alpha=0.35, ms=3)
      means.append(float(np.mean(ends)) if ends else np.nan)
    ax.plot(range(len(points)), means, "-", color=color, linewidth=1.5)
  ax.set_xticks(range(len(points)), labels)
  names = ", ".join(name for name, _ in varied[0])
  return plots.style(ax, "Final pass@1", names, "pass@1")


def _varied(point: tuple, points: Sequence[tuple]) -> list[tuple[str, str]]:
  """Short name and value of the axes that are not the same at all points."""
  return [
    (name.rpartition(".")[2], value)
    for i, (name, value) in enumerate(point)
    if any(other[i][1] != value for other in points)
  ]
