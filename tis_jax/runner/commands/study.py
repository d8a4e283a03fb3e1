"""`tis study`: several runs, and what they come to.

  tis study --config=study:headline --workdir=runs/study --seeds 0 1 2
  tis study --config=quickstart --workdir=runs/seeds --vary seed 0 1 2

The first makes the runs of a study (a file whose get_config returns one), the second
one config under several settings. `--vary SETTING VALUE VALUE ...` separates values by
spaces. A comma is a part of its value, as it is for `tis train`:

  --vary algorithm.correction.stages veto,truncate truncate

Given several times, all combinations are run. Runs that are finished are not made
again, those that were stopped go on. A run whose workdir holds other settings than the
study now asks for is named and left as it is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tis_jax.runner import ExpectedError, logs
from tis_jax.runner.interrupts import Interrupted
from tis_jax.runner.study import (
  Study,
  default_jobs,
  load_study,
  make_runs,
  plan,
  rebuilt,
  report,
  varied,
)


def main(argv: Sequence[str]) -> None:
  parser = _parser()
  known = parser.parse_args(argv)
  if known.csv:
    try:
      _write(rebuilt(known.csv.read_text(), known.columns, known.arms), known.out)
    except ValueError as error:
      parser.error(str(error))
    return
  if not known.config or not known.workdir:
    parser.error("--config and --workdir are needed, or --from")
  if known.jobs < 1:
    parser.error(f"--jobs {known.jobs}: at least 1")
  if known.vary and (known.arms or known.seeds):
    parser.error("--arms and --seeds are of a study; with --vary, --vary seed 0 1")
  try:
    runs = plan(_study(known))
  except ExpectedError as error:
    sys.exit(f"{type(error).__name__}: {error}")
  except ValueError as error:
    parser.error(str(error))
  failed = {}
  if not known.report:
    try:
      failed = make_runs(runs, known.workdir, known.jobs)
    except Interrupted:
      return
  part = "" if known.vary else known.config.partition(":")[2]
  stem = known.out.with_suffix("") if known.out else known.workdir / (part or "summary")
  results = report(runs, known.workdir, stem, known.columns, failed)
  logs.say(
    "", f"{stem}.md", "", stem.with_name(f"{stem.name}.md").read_text(), sep="\n"
  )
  # A run that diverged is a result.
  states = zip(runs, (result.state for result in results), strict=True)
  left = [run.name for run, state in states if state in ("unfinished", "stale")]
  if left and not known.report:
    sys.exit(f"not finished: {', '.join(left)}")


def _study(known: argparse.Namespace) -> Study:
  """What the command line asks for."""
  if known.vary:
    return varied(known.config, known.vary)
  return load_study(known.config).only(known.arms, known.seeds)


def _write(text: str, out: Path | None) -> None:
  if out:
    out.write_text(text)
  else:
    logs.say(text)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="tis study",
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--config", metavar="NAME[:PART]", help="a study, or with --vary a run's recipe"
  )
  parser.add_argument("--workdir", type=Path, help="folder of the runs' workdirs")
  parser.add_argument(
    "--vary",
    action="append",
    nargs="+",
    default=[],
    metavar=("SETTING", "VALUE"),
    help="values of a setting, separated by spaces; a comma is a part of its value",
  )
  parser.add_argument(
    "--arms", nargs="+", default=[], help="these alone; the first is compared with"
  )
  parser.add_argument(
    "--seeds", nargs="+", type=int, default=[], help="instead of the study's own"
  )
  parser.add_argument(
    "--jobs",
    type=int,
    default=default_jobs(),
    help="runs at once; one for two CPU cores, unless said",
  )
  parser.add_argument(
    "--report", action="store_true", help="of the runs that are there; makes none"
  )
  parser.add_argument(
    "--from",
    type=Path,
    dest="csv",
    metavar="CSV",
    help="the Markdown of a CSV that a study wrote, of --arms if given; nothing else",
  )
  parser.add_argument(
    "--out",
    type=Path,
    metavar="FILE.md",
    help="Markdown; .csv, .json and .png go beside it. In the workdir, unless said",
  )
  parser.add_argument(
    "--columns",
    nargs="+",
    default=[],
    metavar="NAME",
    help="to show: of summary.json, or metrics, averaged over the steps",
  )
  return parser
