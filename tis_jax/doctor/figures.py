"""Figures as SVG, drawn by hand: no plotting library is needed for them."""

import itertools
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT, LEFT, BELOW, TOP = 330, 240, 46, 36, 10
POINTS = 1500
"""Tokens that a scatter shows at most, evenly chosen."""
BLUE, ORANGE, GREY = "#2f5d8a", "#d1662b", "#8a949e"


def scatter(sampler: np.ndarray, learner: np.ndarray) -> str:
  """Log-probs of the same tokens under both sides, with the line where they agree."""
  low = float(np.floor(min(sampler.min(), learner.min(), -0.1)))
  high = float(max(0.0, sampler.max(), learner.max()))
  chosen = np.linspace(0, len(sampler) - 1, min(POINTS, len(sampler))).astype(int)
  frame = _Frame(low, high, low, high)
  dots = [
    f'<circle cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="1.8"/>'
    for a, b in zip(sampler[chosen], learner[chosen], strict=True)
  ]
  line = frame.line([low, high], [low, high], GREY, 1)
  drawn = f'{line}<g fill="{BLUE}" fill-opacity="0.4">{"".join(dots)}</g>'
  return frame.svg(drawn, "sampler log-prob", "learner log-prob")


def histogram(gap: np.ndarray, bins: int = 41) -> str:
  """Counts of the gap, on a logarithmic axis."""
  reach = float(max(np.abs(gap).max(), 1e-6))
  counts, edges = np.histogram(gap, bins, (-reach, reach))
  height = np.log10(np.maximum(counts, 0.5))
  frame = _Frame(-reach, reach, np.log10(0.5), float(max(height.max(), 0.5)))
  bars = []
  for i, top in enumerate(height):
    if counts[i]:
      x, y = frame.x(edges[i]), frame.y(top)
      width = frame.x(edges[i + 1]) - x
      bars.append(
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.5, 0.5):.1f}" '
        f'height="{frame.y(frame.low) - y:.1f}"/>'
      )
  drawn = f'<g fill="{BLUE}">{"".join(bars)}</g>'
  return frame.svg(drawn, "d, nats", "tokens (log10)")


def by_place(place: np.ndarray, gap: np.ndarray, bins: int = 40) -> str:
  """The mean of |d| and its 90th percentile along the answer."""
  edges = np.unique(np.linspace(0, place.max() + 1, bins + 1).astype(int))
  at, mean, high = [], [], []
  for start, end in itertools.pairwise(edges):
    here = gap[(place >= start) & (place < end)]
    if len(here):
      at.append((start + end - 1) / 2)
      mean.append(float(here.mean()))
      high.append(float(np.quantile(here, 0.9)))
  frame = _Frame(0, max(float(place.max()), 1.0), 0, max(*high, *mean, 1e-9) * 1.05)
  drawn = frame.line(at, mean, BLUE, 2) + frame.line(at, high, ORANGE, 1.5, "5 3")
  return frame.svg(drawn, "token of the answer", "|d|, nats")


class _Frame:
  """Axes, and where a number lies on them."""

  def __init__(self, left: float, right: float, low: float, high: float):
    self.left, self.right, self.low, self.high = left, right, low, high

  def x(self, value) -> float:
    span = self.right - self.left or 1.0
    return LEFT + (float(value) - self.left) / span * (WIDTH - LEFT - 10)

  def y(self, value) -> float:
    span = self.high - self.low or 1.0
    return HEIGHT - BELOW - (float(value) - self.low) / span * (HEIGHT - BELOW - TOP)

  def line(
    self, xs: Sequence[float], ys: Sequence[float], color: str, width, dash=""
  ) -> str:
    points = " ".join(
      f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(xs, ys, strict=True)
    )
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
      f'<polyline points="{points}" fill="none" stroke="{color}" '
      f'stroke-width="{width}"{dashes}/>'
    )

  def svg(self, drawn: str, across: str, up: str) -> str:
    right, bottom = WIDTH - 10, HEIGHT - BELOW
    ticks = []
    for part in (0, 0.5, 1):
      x = LEFT + part * (right - LEFT)
      y = bottom - part * (bottom - TOP)
      a = self.left + part * (self.right - self.left)
      b = self.low + part * (self.high - self.low)
      ticks.append(
        f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="middle">{a:.3g}</text>'
      )
      ticks.append(
        f'<text x="{LEFT - 4}" y="{y + 4:.0f}" text-anchor="end">{b:.2g}</text>'
      )
    middle = (LEFT + right) / 2
    return (
      f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
      f'role="img" '
      f'aria-label="{up} by {across}" font-size="11" font-family="sans-serif" '
      f'fill="#5b6773"><path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" '
      f'stroke="#9aa5b0"/>{drawn}{"".join(ticks)}'
      f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>'
      f'<text x="12" y="{(TOP + bottom) / 2:.0f}" text-anchor="middle" '
      f'transform="rotate(-90 12 {(TOP + bottom) / 2:.0f})">{up}</text></svg>'
    )
