"""What all panels share: colours that everybody can tell apart, and a quiet frame."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b6b6b")
"""Told apart with any kind of colour vision (Okabe and Ito 2008), and grey."""

ARM_COLORS = (
  *COLORS,
  *("#e69f00", "#56b4e9", "#c23b6f", "#3f3f9f", "#9ab03a", "#7a5230", "#000000"),
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


def log_ticks(ax: Axes, which: Literal["x", "y"]) -> None:
  """A logarithmic axis with plain numbers, also where it spans less than a decade."""
  getattr(ax, f"set_{which}scale")("log")
  axis = getattr(ax, f"{which}axis")
  low, high = getattr(ax, f"get_{which}lim")()
  narrow = high < 10 * low
  axis.set_major_formatter("{x:g}")
  axis.set_minor_formatter("{x:g}" if narrow else NullFormatter())
