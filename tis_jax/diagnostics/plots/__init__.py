"""Pictures of the gap between sampler and learner, and of what a correction did to it.

Panels draw on one matplotlib `Axes` and take plain arrays, so that notebooks and runs
share them; `gap_figure` and `runs_figure` are whole pages.
"""

from tis_jax.diagnostics.plots.frame import ARM_COLORS as ARM_COLORS
from tis_jax.diagnostics.plots.frame import COLORS as COLORS
from tis_jax.diagnostics.plots.frame import style as style
from tis_jax.diagnostics.plots.gap import gap_figure as gap_figure
from tis_jax.diagnostics.plots.gap import log_ratio_by as log_ratio_by
from tis_jax.diagnostics.plots.gap import logp_scatter as logp_scatter
from tis_jax.diagnostics.plots.gap import positions as positions
from tis_jax.diagnostics.plots.gap import (
  ratio_against_probability as ratio_against_probability,
)
from tis_jax.diagnostics.plots.gap import ratio_histogram as ratio_histogram
from tis_jax.diagnostics.plots.gap import sequence_ratios as sequence_ratios
from tis_jax.diagnostics.plots.runs import PANELS as PANELS
from tis_jax.diagnostics.plots.runs import runs_figure as runs_figure
from tis_jax.diagnostics.plots.series import bands as bands
from tis_jax.diagnostics.plots.series import counts_histogram as counts_histogram
from tis_jax.diagnostics.plots.series import curves as curves
from tis_jax.diagnostics.plots.series import trailing_mean as trailing_mean
from tis_jax.diagnostics.plots.transcript import transcript as transcript
