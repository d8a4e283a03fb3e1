"""Runs one config under several settings and puts the summaries side by side.

  python experiments/study.py --config=configs/quickstart.py --workdir=runs/seeds \
    --vary=seed=0,1,2 --out=docs/quickstart_seeds.md

Runs are made one after the other, each in a process and a workdir of its own; those
that have a summary already are not made again.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from absl import app, flags

_CONFIG = flags.DEFINE_string("config", None, "config file of every run")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs' workdirs")
_VARY = flags.DEFINE_multi_string(
  "vary", [], "setting=value,value,...; given several times, all combinations are run"
)
_OUT = flags.DEFINE_string("out", None, "Markdown file for the table")
_COLUMNS = flags.DEFINE_list(
  "columns",
  [
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
  ],
  "entries of summary.json to show",
)


def combinations(vary: list[str]) -> list[dict[str, str]]:
  """Every combination of the settings that are varied."""
  names, values = [], []
  for item in vary:
    name, _, choices = item.partition("=")
    names.append(name)
    values.append(choices.split(","))
  return [
    dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)
  ]


def run(settings: dict[str, str]) -> dict:
  """The summary of one run, made if it is not there."""
  name = "_".join(f"{k.rpartition('.')[2]}-{v}" for k, v in settings.items()) or "run"
  workdir = Path(_WORKDIR.value) / name
  summary = workdir / "summary.json"
  if not summary.exists():
    entry = Path(__file__).with_name("train.py")
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, entry, f"--config={_CONFIG.value}", *overrides]
    subprocess.run([*command, f"--workdir={workdir}"], check=True)
  return json.loads(summary.read_text())


def markdown(rows: list[tuple[dict, dict]], columns: list[str]) -> str:
  """A table with a row a run."""
  names = [*rows[0][0], *columns]
  lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
  for settings, summary in rows:
    numbers = (summary.get(name, "") for name in columns)
    cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in numbers]
    lines.append("| " + " | ".join([*settings.values(), *cells]) + " |")
  return "\n".join(lines) + "\n"


def main(_):
  rows = [(settings, run(settings)) for settings in combinations(_VARY.value)]
  table = markdown(rows, _COLUMNS.value)
  print(table)
  if _OUT.value:
    Path(_OUT.value).write_text(table)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
