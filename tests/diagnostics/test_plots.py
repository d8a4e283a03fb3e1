"""What is drawn is what was given; every panel of the two pages holds something."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tis_jax.diagnostics import plots
from tis_jax.learner import load_batch

ROLLOUTS = Path(__file__).parents[2] / "notebooks" / "quickstart_batch.npz"


def axes():
  return Figure().subplots()


@pytest.fixture(scope="module")
def saved():
  batch, more = load_batch(ROLLOUTS)
  return batch.sampler_logp, more["old_logp"], batch.mask, batch


def test_a_batch_makes_a_page_of_six_panels(saved, tmp_path):
  sampler, old, mask, batch = saved
  by_turn = plots.gap_figure(sampler, old, mask)
  by_version = plots.gap_figure(sampler, old, mask, staleness=0 * batch.versions)
  assert len({ax.get_title(loc="left") for ax in by_turn.axes}) == 6
  assert all(ax.has_data() for ax in by_turn.axes)
  assert by_version.axes[4].get_title(loc="left") == "Log-ratio by staleness"
  by_turn.savefig(tmp_path / "gap.png")


def test_the_median_by_position_is_that_of_the_tokens_there():
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(size=(64, 6))
  old = sampler + 0.1 * np.arange(6) + rng.normal(0, 0.01, (64, 6))
  mask = rng.random((64, 6)) < 0.7
  garbage = np.where(mask, old, np.nan)
  at = plots.positions(mask)
  ax = plots.log_ratio_by(axes(), sampler, garbage, mask, at)
  x, y = ax.lines[-1].get_data()
  assert x.tolist() == list(range(len(x)))
  for position, median in zip(x, y, strict=True):
    there = mask & (at == position)
    np.testing.assert_allclose(median, np.median((old - sampler)[there]))
  few = plots.log_ratio_by(axes(), sampler, garbage, mask, sampler, bins=4)
  assert len(few.lines[-1].get_xdata()) == 4


def test_products_are_of_the_masked_tokens():
  sampler, old = np.log([[0.5, 0.5, 0.5]] * 2), np.log([[0.25, 1.0, 0.5]] * 2)
  mask = np.array([[True, False, True], [False, False, False]])
  ax = plots.sequence_ratios(axes(), sampler, np.where(mask, old, np.nan), mask)
  assert ax.collections[0].get_offsets().tolist() == [[2.0, 0.5]]


def test_a_transcript_shows_the_worst_rows_and_escapes_them():
  sampler, old = np.zeros((3, 2)), np.array([[0, 0], [-2.0, 0], [0, 3.0]])
  mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
  text = {0: "<b>", 1: "tool"}.get
  shown = plots.transcript(
    [[0, 0], [0, 1], [0, 0]], sampler, old, mask, text=text, rows=2
  )
  assert "row 0" not in shown and "row 1" in shown and "row 2" in shown
  assert "<b>" not in shown and "&lt;b&gt;" in shown
  assert "0.000 sampler, -2.000 learner" in shown and "tool" not in shown


def test_runs_are_laid_over_each_other(tmp_path):
  for name, slope in (("a", 1.0), ("b", 2.0)):
    rows = [
      {"step": i, "mismatch/k3": slope * i, "reward/mean": None} for i in (1, 2, 3)
    ]
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
  figure = plots.runs_figure({n: tmp_path / n for n in "ab"}, smooth=1)
  k3 = figure.axes[list(plots.PANELS).index("mismatch/k3")]
  drawn = {line.get_label(): line.get_ydata() for line in k3.lines}
  np.testing.assert_allclose(drawn["b"], [2, 4, 6])
  (tmp_path / "c").write_text('{"step": 1, "other": 2}\n')
  with pytest.raises(ValueError, match="holds none of"):
    plots.runs_figure({"c": tmp_path / "c"})
