"""The gap of one batch, token by token: how large, where, and in which direction."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tis_jax.diagnostics.plots.frame import COLORS, log_ticks, style
from tis_jax.rollouts.turns import turn_ids

# A quarter and three quarters, and nearly all.
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
  ax.set_yscale("log")
  for bound in bounds:
    ax.axvline(bound, color=COLORS[1], linewidth=1.2, linestyle="--")
  log_ticks(ax, "x")
  return style(ax, "Importance ratios", "ratio learner / sampler", "tokens")


def ratio_against_probability(
  ax: Axes, sampler_logp, old_logp, mask, *, points: int = 4000
) -> Axes:
  """Each token's ratio over its probability under the sampler, both on log axes.

  Noise of the logits grows where the probability is small. Log-probs of another
  temperature, or renormalised over top-p, make a line instead of a cloud.

  Args:
    ax: where to draw.
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    points: at most this many tokens are drawn, evenly chosen.
  """
  x, y = _select(mask, sampler_logp, old_logp, limit=points)
  ax.axhline(1.0, color=COLORS[4], linewidth=0.8, zorder=1)
  ratio = np.exp(np.clip(y - x, -20, 20))
  ax.scatter(np.exp(x), ratio, s=5, alpha=0.35, color=COLORS[0], edgecolors="none")
  ax.set_xscale("log")
  log_ticks(ax, "y")
  return style(
    ax, "Ratio by probability", "sampler's probability", "ratio learner / sampler"
  )


def log_ratio_by(
  ax: Axes,
  sampler_logp,
  old_logp,
  mask,
  by,
  *,
  title: str = "Log-ratio by position",
  xlabel: str = "position",
  bins: int = 24,
) -> Axes:
  """Median, quartiles and 5% tails of the log-ratio, by something of each token.

  Args:
    ax: where to draw.
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    by: `[B, T]` numbers: `positions(mask)`, staleness, turns, ...
    title: of the panel.
    xlabel: what `by` is.
    bins: ranges that `by` is cut into, with as many tokens each; one a value where
      there are no more values.
  """
  x, y, where = _select(mask, sampler_logp, old_logp, by)
  d = y - x
  values = np.unique(where)
  if len(values) > bins:
    edges = np.unique(np.quantile(where, np.linspace(0, 1, bins + 1)))
    group = np.clip(np.searchsorted(edges, where, side="right") - 1, 0, len(edges) - 2)
  else:
    group = np.searchsorted(values, where)
  kept = np.unique(group)
  at = np.array([where[group == i].mean() for i in kept])
  low, first, median, third, high = np.array(
    [np.quantile(d[group == i], _QUANTILES) for i in kept]
  ).T
  ax.axhline(0.0, color=COLORS[4], linewidth=0.8)
  ax.vlines(at, low, high, color=COLORS[0], alpha=0.3, linewidth=2)
  ax.vlines(at, first, third, color=COLORS[0], alpha=0.4, linewidth=6)
  ax.plot(at, median, color=COLORS[0], linewidth=1.5, marker="o", ms=3)
  return style(ax, title, xlabel, "learner - sampler, nats")


def positions(mask) -> np.ndarray:
  """`[B, T]`: how many sampled tokens stand before each one.

  >>> positions([[True, False, True]]).tolist()
  [[0, 1, 1]]
  """
  mask = np.asarray(mask, bool)
  return np.cumsum(mask, axis=1) - mask


def gap_figure(
  sampler_logp,
  old_logp,
  mask,
  *,
  staleness=None,
  bounds: Sequence[float] = (0.5, 2.0),
) -> Figure:
  """Six panels of one batch: the first look at a dump.

  Args:
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    staleness: `[B, T]` versions between sampler and learner, where it is known.
    bounds: ratios to mark.
  """
  arrays = (sampler_logp, old_logp, mask)
  figure = Figure(figsize=(12.5, 6.4), layout="constrained")
  axes: Sequence[Axes] = figure.subplots(2, 3).flatten()
  logp_scatter(axes[0], *arrays)
  ratio_histogram(axes[1], *arrays, bounds=bounds)
  ratio_against_probability(axes[2], *arrays)
  log_ratio_by(axes[3], *arrays, positions(mask))
  if staleness is not None:
    words = {"title": "Log-ratio by staleness", "xlabel": "versions behind"}
    log_ratio_by(axes[4], *arrays, staleness, **words)
  else:
    words = {"title": "Log-ratio by turn", "xlabel": "turn"}
    log_ratio_by(axes[4], *arrays, turn_ids(np.asarray(mask, bool)), **words)
  sequence_ratios(axes[5], *arrays, bounds=bounds)
  return figure


def sequence_ratios(
  ax: Axes, sampler_logp, old_logp, mask, *, bounds: Sequence[float] = ()
) -> Axes:
  """Each sequence's product of ratios over its length.

  Args:
    ax: where to draw.
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    bounds: ratios to mark.
  """
  mask = np.asarray(mask, bool)
  d = np.where(mask, np.asarray(old_logp, float) - np.asarray(sampler_logp, float), 0)
  held = mask.any(axis=1)
  product = np.exp(np.clip(d[held].sum(axis=1), -20, 20))
  ax.axhline(1.0, color=COLORS[4], linewidth=0.8)
  for bound in bounds:
    ax.axhline(bound, color=COLORS[1], linewidth=1.2, linestyle="--")
  length = mask[held].sum(axis=1)
  ax.scatter(length, product, s=9, alpha=0.5, color=COLORS[0], edgecolors="none")
  log_ticks(ax, "y")
  return style(ax, "Ratio of whole sequences", "tokens", "product of ratios")


def _select(mask, *arrays, limit: int | None = None):
  mask = np.asarray(mask, bool)
  chosen = [np.asarray(a, np.float64)[mask] for a in arrays]
  if limit is not None and len(chosen[0]) > limit:
    keep = np.linspace(0, len(chosen[0]) - 1, limit).astype(int)
    chosen = [a[keep] for a in chosen]
  return chosen
