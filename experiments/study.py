"""Runs one config under several settings and puts the summaries side by side.

  python experiments/study.py --config=configs/quickstart.py --workdir=runs/seeds \
    --vary seed 0 1 2 --out=docs/quickstart_seeds.md

`--vary SETTING VALUE VALUE ...` separates values by spaces. A comma is a part of its
value, as it is for `tis train`:

  --vary algorithm.correction.stages veto,truncate truncate

Given several times, all combinations are run. Runs are made one after the other, each
in a process and a workdir of its own; those that have a summary already are not made
again.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COLUMNS = (
  "pass_at_1/base",
  "pass_at_1/final",
  "pass_at_1/gain",
  "pass_at_1/stderr",
  "steps",
  "wall_seconds",
  "rollouts/trained",
  "rollouts/lost",
  "mismatch/k3",
  "weight/ess",
)


def combinations(vary: Sequence[Sequence[str]]) -> list[dict[str, str]]:
  """Every combination of the settings that are varied.

  Args:
    vary: for each of them its name and its values.

  Raises:
    ValueError: values that are not separated by spaces; a setting given twice.
  """
  varied: dict[str, Sequence[str]] = {}
  for name, *values in vary:
    if "=" in name:
      name, _, first = name.partition("=")
      meant = " ".join([name, *first.split(","), *values])
      raise ValueError(f"values are separated by spaces: --vary {meant}")
    if not values or (len(values) == 1 and "," in values[0]):
      raise ValueError(
        f"--vary {' '.join([name, *values])}: values are separated by spaces, and a "
        "comma is a part of its value; what does not vary belongs in the config"
      )
    if name in varied:
      raise ValueError(f"--vary {name} is given twice; name all its values in one")
    varied[name] = values
  return [
    dict(zip(varied, chosen, strict=True))
    for chosen in itertools.product(*varied.values())
  ]


def run(config: str, folder: Path, settings: dict[str, str]) -> dict:
  """The summary of one run, made if it is not there."""
  name = "_".join(f"{k.rpartition('.')[2]}-{v}" for k, v in settings.items()) or "run"
  workdir = folder / name
  summary = workdir / "summary.json"
  if not summary.exists():
    entry = Path(__file__).with_name("train.py")
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, entry, f"--config={config}", *overrides]
    if subprocess.run([*command, f"--workdir={workdir}"]).returncode:
      sys.exit(f"the run in {workdir} failed, so the study ends; see above")
    if not summary.exists():
      sys.exit(f"the run in {workdir} was stopped; the same command goes on from there")
  return json.loads(summary.read_text())


def markdown(rows: list[tuple[dict, dict]], columns: Sequence[str]) -> str:
  """A table with a row a run."""
  names = [*rows[0][0], *columns]
  lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
  for settings, summary in rows:
    numbers = (summary.get(name, "") for name in columns)
    cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in numbers]
    lines.append("| " + " | ".join([*settings.values(), *cells]) + " |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", required=True, help="of every run")
  parser.add_argument(
    "--workdir", required=True, type=Path, help="folder of the runs' workdirs"
  )
  parser.add_argument(
    "--vary",
    action="append",
    nargs="+",
    default=[],
    metavar=("SETTING", "VALUE"),
    help="values of a setting, separated by spaces; a comma is a part of its value",
  )
  parser.add_argument("--out", type=Path, help="Markdown file for the table")
  parser.add_argument(
    "--columns",
    nargs="+",
    default=COLUMNS,
    metavar="NAME",
    help="entries of summary.json to show",
  )
  known = parser.parse_args(argv)
  try:
    chosen = combinations(known.vary)
  except ValueError as error:
    parser.error(str(error))
  rows = [(settings, run(known.config, known.workdir, settings)) for settings in chosen]
  table = markdown(rows, known.columns)
  print(table)
  if known.out:
    known.out.write_text(table)


if __name__ == "__main__":
  main(sys.argv[1:])
