"""Tables, CSV and figure of a study, from workdirs as runs leave them."""

import json
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from tis_jax.diagnostics import plots
from tis_jax.runner.statistics import interval, paired
from tis_jax.runner.study import Study, collect, plan, rebuilt, report
from tis_jax.runner.study.figures import draw
from tis_jax.runner.study.results import Result
from tis_jax.runner.workdir import keep_config

STUDY = Study(
  "quickstart",
  {"store.max_staleness": 8},
  {"none": {"algorithm.correction.stages": ()}, "tis": {}},
  seeds=(0, 1, 2),
)
BASE = 0.5
FINALS = {"none": (0.30, 0.55, 0.39), "tis": (0.70, 0.75, 0.74)}
LOWEST = {"none": (0.20, 0.45, 0.39), "tis": (0.48, 0.50, 0.50)}


def finish(run, folder, final, lowest):
  """A workdir as a finished run leaves it."""
  workdir = folder / run.name
  workdir.mkdir(parents=True)
  keep_config(run.config, workdir)
  summary = {
    "pass_at_1/base": BASE,
    "pass_at_1/final": final,
    "pass_at_1/gain": final - BASE,
    "pass_at_1/lowest": lowest,
    "mismatch/k3": 0.01 * (1 + run.seed),
    "wall_seconds": 100.0,
  }
  (workdir / "summary.json").write_text(json.dumps(summary))
  rows = [{"step": step, "eval/pass_at_1": x} for step, x in enumerate((BASE, lowest))]
  rows += [{"step": i, "optimizer/grad_norm": 2.0 * i} for i in (1, 2)]
  rows.append({"step": 2, "eval/pass_at_1": final})
  rest = ("reward/mean", "reward/learner_normalized", "mismatch/k3", "weight/ess")
  rows[2] |= dict.fromkeys(rest, 0.5)
  (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in rows))


@pytest.fixture
def folder(tmp_path):
  for run in plan(STUDY):
    finish(run, tmp_path, FINALS[run.arm][run.seed], LOWEST[run.arm][run.seed])
  return tmp_path


def cells(markdown):
  """arm -> {column: cell}, of the first table."""
  head, _, *rows = markdown.split("\n\n")[0].splitlines()
  split = lambda line: [cell.strip() for cell in line.split("|")[1:-1]]
  return {
    split(row)[0]: dict(zip(split(head), split(row), strict=True)) for row in rows
  }


def test_intervals_are_students():
  values = np.array([0.1, 0.4, 0.2, 0.35])
  found = interval(values)
  low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
  np.testing.assert_allclose(
    [found.mean - found.half, found.mean + found.half], [low, high]
  )
  assert np.isnan(interval([0.5]).half) and interval([]).count == 0
  # What all arms of a seed share is not in their difference.
  noise = {str(i): x for i, x in enumerate(values)}
  found = paired({seed: x + 0.1 for seed, x in noise.items()}, noise)
  np.testing.assert_allclose(found, (0.1, 0, 4), atol=1e-12)


def test_seeds_are_aggregated_and_arms_compared(folder, tmp_path):
  report(plan(STUDY), folder, tmp_path / "out")
  text = (tmp_path / "out.md").read_text()
  rows = cells(text)
  assert rows["none"]["runs"] == rows["tis"]["runs"] == "3 of 3"
  assert (rows["none"]["worst dip"], rows["tis"]["worst dip"]) == ("-0.3", "-0.02")
  # 0.30 and 0.39 are more than 0.10 below 0.50.
  assert (rows["none"]["collapses"], rows["tis"]["collapses"]) == ("2", "0")
  half = stats.t.ppf(0.975, 2) * np.std(FINALS["tis"], ddof=1) / np.sqrt(3)
  assert rows["tis"]["pass_at_1/final"] == f"0.730 ± {half:.3f}"
  assert rows["tis"]["optimizer/grad_norm"] == "3"  # of metrics.jsonl
  gaps = np.subtract(FINALS["tis"], FINALS["none"])
  half = stats.t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
  assert f"| tis | {gaps.mean():.2f} ± {half:.2f} | 3 |" in text


def test_the_csv_brings_the_markdown_back(folder, tmp_path):
  report(plan(STUDY), folder, tmp_path / "out")
  table = (tmp_path / "out.csv").read_text()
  assert rebuilt(table) == (tmp_path / "out.md").read_text()
  head, first, *_ = table.splitlines()
  assert head.startswith("arm,seed,state,reason,pass_at_1/base,")
  assert head.endswith(",pass_at_1@0,pass_at_1@1,pass_at_1@2")
  assert first.startswith("none,0,finished,,0.5,0.3,")
  assert first.endswith(",0.5,0.2,0.3")


def test_arms_of_a_csv_are_compared_with_the_first_that_is_named(folder, tmp_path):
  report(plan(STUDY), folder, tmp_path / "out")
  text = rebuilt((tmp_path / "out.csv").read_text(), arms=["tis", "none"])
  assert list(cells(text)) == ["tis", "none"]
  gaps = np.subtract(FINALS["none"], FINALS["tis"])
  assert f"| none | {gaps.mean():.2f} ± " in text
  with pytest.raises(ValueError, match="arm must be one of 'none', 'tis', got 'tas'"):
    rebuilt((tmp_path / "out.csv").read_text(), arms=["tas"])


def test_flat_numbers_are_by_arm(folder, tmp_path):
  report(plan(STUDY.only(seeds=[1])), folder, tmp_path / "out")
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["none/pass_at_1/final"] == 0.55
  assert found["tis/pass_at_1/lowest"] == 0.50
  assert found["tis/mismatch/k3"] == found["mismatch/k3"] == 0.02
  assert found["wall_seconds"] == 200


def test_runs_that_did_not_finish_are_named_and_not_counted(folder, tmp_path):
  runs = {run.name: run for run in plan(STUDY)}
  stale, diverged = folder / "tis_seed-0", folder / "none_seed-2"
  keep_config(runs["none_seed-0"].config, stale)
  (diverged / "summary.json").unlink()
  (diverged / "bad_batch_000007.npz").touch()
  said = f"NotedError: early\nBadUpdateError: see {diverged.resolve()}/x.npz\n\nbye\n"
  (diverged / "output.log").write_text(said)
  (folder / "tis_seed-2" / "summary.json").unlink()
  report(list(runs.values()), folder, tmp_path / "out")
  text = (tmp_path / "out.md").read_text()
  rows = cells(text)
  assert (rows["none"]["runs"], rows["tis"]["runs"]) == ("2 of 3", "1 of 3")
  assert "| none | 2 | diverged | BadUpdateError: see x.npz |" in text
  assert "| tis | 2 | unfinished | not made yet |" in text
  # The same config but for what changes no number is the same run.
  assert (
    "| tis | 0 | stale | tis_seed-0 holds a run with other settings (algorithm."
    in (text)
  )
  runs["none_seed-1"].config.log.every = 7
  assert collect(runs["none_seed-1"], folder).state == "finished"
  runs["none_seed-1"].config.train.steps = 7
  assert collect(runs["none_seed-1"], folder).state == "stale"


def test_a_study_over_an_axis_has_a_panel_a_point(tmp_path):
  study = Study(
    "quickstart",
    arms=STUDY.arms,
    axes={"store.max_staleness": (0, 4)},
    seeds=(0, 1),
  )
  for run in plan(study):
    finish(run, tmp_path, FINALS[run.arm][run.seed], LOWEST[run.arm][run.seed])
  report(plan(study), tmp_path, tmp_path / "out")
  assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
  text = (tmp_path / "out.md").read_text()
  assert "| none | 0 | 2 of 2 |" in text and "| tis | 4 | 2 of 2 |" in text
  found = json.loads((tmp_path / "out.json").read_text())
  assert found["tis/max_staleness-4/pass_at_1/final"] == 0.725


def test_a_study_without_arms_shows_its_runs(tmp_path):
  study = Study("quickstart", axes={"train.steps": (5, 6)}, seeds=(0,))
  for run in plan(study):
    finish(run, tmp_path, 0.7, 0.5)
  report(plan(study), tmp_path, tmp_path / "out", ["pass_at_1/final"])
  assert (tmp_path / "out.md").read_text().splitlines() == [
    "| train.steps | pass_at_1/final | state |",
    "|---|---|---|",
    "| 5 | 0.7 | finished |",
    "| 6 | 0.7 | finished |",
  ]


def test_a_band_is_the_interval_around_the_mean():
  ax = Figure().subplots()
  series = {"empty": [], "one": [[1.0, 2.0]], "two": [[0.0, 4.0], [1.0, 8.0]]}
  plots.bands(ax, [10, 20], series, title="t", ylabel="y")
  one, two = ax.lines
  np.testing.assert_array_equal(one.get_ydata(), [1, 2])
  np.testing.assert_array_equal(two.get_ydata(), [0.5, 6])
  # A name without runs keeps its colour from the others.
  assert [x.get_color() for x in (one, two)] == list(plots.ARM_COLORS[1:3])
  (band,) = ax.collections
  corners = {tuple(np.round(x, 2)) for x in band.get_paths()[0].vertices}
  # Of two values t is 12.706, so half the interval 12.706 times half their distance.
  assert {(10, -5.85), (10, 6.85), (20, -19.41), (20, 31.41)} <= corners


def test_a_band_on_a_logarithmic_axis_is_of_the_logarithm():
  ax = Figure().subplots()
  plots.bands(
    ax, [1, 2], {"two": [[1.0, 0.0], [4.0, 1.0]]}, title="", ylabel="", log=True
  )
  np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, np.nan])
  (band,) = ax.collections
  lowest = min(y for _, y in band.get_paths()[0].vertices)
  # log 2 less 12.706 times log 2, above 0 however wide it is.
  np.testing.assert_allclose(np.log(lowest), np.log(2) * (1 - 12.7062), rtol=1e-4)


def test_of_many_arms_what_they_came_to_is_drawn(tmp_path):
  arms = [f"arm{i}" for i in range(7)]
  summary = {"pass_at_1/base": 0.5, "pass_at_1/final": 0.6, "pass_at_1/lowest": 0.5}
  results = [
    Result(arm, {}, str(seed), "finished", "", summary)
    for arm in arms
    for seed in (0, 1)
  ]
  # No metric of a step is read: there are more lines than anybody tells apart.
  draw(tmp_path / "many.png", arms, [(result, {}) for result in results])
  width, height = struct.unpack(">II", (tmp_path / "many.png").read_bytes()[16:24])
  assert 0 < height < width / 2
