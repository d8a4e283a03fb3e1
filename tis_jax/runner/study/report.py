"""All that is written of a study: CSV, Markdown, figure, flat numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tis_jax.numerics.checks import check_choice
from tis_jax.runner.figures import read_columns
from tis_jax.runner.study.figures import draw
from tis_jax.runner.study.plan import PlannedRun
from tis_jax.runner.study.results import Result, collect, from_csv, to_csv
from tis_jax.runner.study.tables import ARM_COLUMNS, flat, page


def report(
  runs: Sequence[PlannedRun],
  folder: Path,
  stem: Path,
  columns: Sequence[str] = (),
  failed: Mapping[str, str] | None = None,
) -> list[Result]:
  """Reads the runs of a study and writes `stem` + .csv, .md, .json and .png.

  The tables are made of the CSV, so that it alone brings them back (`rebuilt`).

  Args:
    runs: of `plan`.
    folder: of their workdirs.
    stem: where to write, without a suffix.
    columns: of the tables, see `tables.page`: of the summaries, or metrics, which are
      averaged over the steps.
    failed: name -> reason, of runs that just failed.

  Returns:
    The results, in the order of the runs.
  """
  results = []
  for run in runs:
    failure = (failed or {}).get(run.name, "")
    results.append(collect(run, folder, columns or ARM_COLUMNS, failure))
  stem.parent.mkdir(parents=True, exist_ok=True)
  text = to_csv(results)
  _file(stem, ".csv").write_text(text)
  _file(stem, ".md").write_text(rebuilt(text, columns))
  _file(stem, ".json").write_text(json.dumps(flat(results), indent=2) + "\n")
  done = [
    (result, read_columns(folder / run.name / "metrics.jsonl"))
    for run, result in zip(runs, results, strict=True)
    if result.state == "finished"
  ]
  if done:
    draw(_file(stem, ".png"), list(dict.fromkeys(run.arm for run in runs)), done)
  return results


def rebuilt(text: str, columns: Sequence[str] = (), arms: Sequence[str] = ()) -> str:
  """The Markdown of a CSV that `report` wrote.

  Args:
    text: the CSV.
    columns: see `report`.
    arms: these alone, in this order; the first is compared with.

  Raises:
    ValueError: it has no such arm.
  """
  results = from_csv(text)
  for arm in arms:
    check_choice("arm", arm, tuple(dict.fromkeys(r.arm for r in results)))
  if arms:
    results = [r for arm in arms for r in results if r.arm == arm]
  return page(results, columns)


def _file(stem: Path, suffix: str) -> Path:
  # Not with_suffix: a part's name may hold a dot.
  return stem.with_name(stem.name + suffix)
