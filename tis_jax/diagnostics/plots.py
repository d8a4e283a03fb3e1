"""Pictures of the gap between sampler and learner, and of what a correction did to it.

Every function draws on one matplotlib `Axes` and takes plain arrays, so that notebooks
and runs share them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.special import stdtrit

COLORS = ("#2f5d8a", "#d1662b", "#4c8c4a", "#8a4f9e", "#6b6b6b")
ARM_COLORS = (
  *COLORS,
  *("#b8860b", "#1b9e9e", "#c23b6f", "#3f3f9f", "#9ab03a", "#7a5230", "#000000"),
)
"""For more lines in one panel than `COLORS` has."""


def style(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
  """Gives one panel its title, labels and a quiet frame."""
  ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
  ax.set_xlabel(xlabel, fontsize=9)
  ax.set_ylabel(ylabel, fontsize=9)
  ax.tick_params(labelsize=8)
  ax.grid(alpha=0.25, linewidth=0.6)
  ax.spines[["top", "right"]].set_visible(False)
  return ax


def logp_scatter(ax: Axes, sampler_logp, old_logp, mask, *, points: int = 4000) -> Axes:
  """Log-probs of the same tokens under sampler and learner; on the diagonal they agree.

  Args:
    ax: where to draw.
    sampler_logp: `[B, T]` log-probs of the engine that generated the tokens.
    old_logp: `[B, T]` the learner's own.
    mask: `[B, T]` bool, the tokens to show.
    points: at most this many tokens are drawn, evenly chosen.
  """
  x, y = _select(mask, sampler_logp, old_logp, limit=points)
  low = min(x.min(), y.min())
  ax.plot([low, 0], [low, 0], color=COLORS[4], linewidth=0.8, zorder=1)
  ax.scatter(x, y, s=5, alpha=0.35, color=COLORS[0], edgecolors="none", zorder=2)
  return style(ax, "Sampler against learner", "sampler log-prob", "learner log-prob")


def ratio_histogram(
  ax: Axes,
  sampler_logp,
  old_logp,
  mask,
  *,
  bounds: Sequence[float] = (),
  bins: int = 80,
) -> Axes:
  """Histogram of the token ratios pi/mu on log axes, with the bounds of a correction.

  Args:
    ax: where to draw.
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    bounds: ratios to mark, such as a cap.
    bins: number of bins between the smallest and the largest ratio.
  """
  x, y = _select(mask, sampler_logp, old_logp)
  ratio = np.exp(np.clip(y - x, -20, 20))
  reach = max(np.abs(np.log(ratio)).max(), 1e-3) * 1.05
  edges = np.exp(np.linspace(-reach, reach, bins + 1))
  ax.hist(ratio, bins=edges.tolist(), color=COLORS[0], alpha=0.85)
  ax.set_xscale("log")
  ax.set_yscale("log")
  for bound in bounds:
    ax.axvline(bound, color=COLORS[1], linewidth=1.2, linestyle="--")
  return style(ax, "Importance ratios", "ratio learner / sampler", "tokens")


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


def _select(mask, *arrays, limit: int | None = None):
  mask = np.asarray(mask, bool)
  chosen = [np.asarray(a, np.float64)[mask] for a in arrays]
  if limit is not None and len(chosen[0]) > limit:
    keep = np.linspace(0, len(chosen[0]) - 1, limit).astype(int)
    chosen = [a[keep] for a in chosen]
  return chosen
