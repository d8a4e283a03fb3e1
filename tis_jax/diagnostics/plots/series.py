"""Series over a run's steps: lines, bands over seeds, counted histograms."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from scipy.special import stdtrit

from tis_jax.diagnostics.plots.frame import ARM_COLORS, COLORS, style


def counts_histogram(ax: Axes, edges, counts: Mapping[str, np.ndarray]) -> Axes:
  """Draws counted histograms over shared bin `edges`, one outline per name."""
  styles = zip(counts.items(), COLORS, ("-", "--", ":", "-."), strict=False)
  for (name, values), color, line in styles:
    ax.stairs(values, edges, color=color, linestyle=line, label=name, linewidth=1.4)
  ax.set_yscale("log")
  ax.legend(fontsize=8, frameon=False)
  return style(ax, "Weights", "weight", "tokens")


def curves(
  ax: Axes,
  steps,
  series: Mapping[str, np.ndarray],
  *,
  title: str,
  ylabel: str,
  smooth: int = 1,
) -> Axes:
  """Draws one line per name over the learner's steps.

  Args:
    ax: where to draw.
    steps: `[N]` steps of the learner.
    series: name -> `[N]` values; NaN leaves a gap.
    title: of the panel.
    ylabel: with units.
    smooth: window of a trailing mean; the raw values stay behind it, faint.
  """
  styles = zip(series.items(), COLORS, ("-", "--", ":", "-."), strict=False)
  for (name, values), color, line in styles:
    values = np.asarray(values, float)
    if smooth > 1:
      ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
    smoothed = trailing_mean(values, smooth)
    ax.plot(steps, smoothed, line, color=color, linewidth=1.6, label=name)
  if len(series) > 1:
    ax.legend(fontsize=8, frameon=False)
  return style(ax, title, "learner step", ylabel)


def bands(
  ax: Axes,
  steps,
  series: Mapping[str, np.ndarray],
  *,
  title: str,
  ylabel: str,
  smooth: int = 1,
  line: str = "-",
  marker: str = "",
  log: bool = False,
) -> Axes:
  """Draws the mean of several runs per name, and its 95% interval by Student's t.

  Args:
    ax: where to draw.
    steps: `[N]` steps of the learner.
    series: name -> `[runs, N]` values; NaN leaves a gap. The order gives the colour,
      and a name without a row keeps its own.
    title: of the panel.
    ylabel: with units.
    smooth: window of a trailing mean.
    line: style of the lines.
    marker: of the points.
    log: a logarithmic axis; mean and interval are those of the logarithm, and what is
      not above 0 leaves a gap.
  """
  if log:
    ax.set_yscale("log")
  drawn = np.exp if log else np.asarray
  for i, (name, values) in enumerate(series.items()):
    if not len(values):
      continue
    rows = np.stack([trailing_mean(row, smooth) for row in np.asarray(values, float)])
    if log:
      rows = np.log(np.where(rows > 0, rows, np.nan))
    color = ARM_COLORS[i % len(ARM_COLORS)]
    mean = rows.mean(axis=0)
    how = {"color": color, "linewidth": 1.5, "marker": marker, "ms": 3}
    ax.plot(steps, drawn(mean), line, label=name, **how)
    if (n := len(rows)) > 1:
      half = stdtrit(n - 1, 0.975) * rows.std(axis=0, ddof=1) / np.sqrt(n)
      low, high = drawn(mean - half), drawn(mean + half)
      ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
  return style(ax, title, "learner step", ylabel)


def trailing_mean(values, window: int) -> np.ndarray:
  """The mean of each value and the `window - 1` before it.

  >>> trailing_mean([1.0, 3.0, 5.0], 2)
  array([1., 2., 4.])
  """
  values = np.asarray(values, float)
  padded = np.concatenate([np.zeros(1), np.cumsum(values)])
  end = np.arange(1, len(values) + 1)
  start = np.maximum(end - window, 0)
  return (padded[end] - padded[start]) / (end - start)
