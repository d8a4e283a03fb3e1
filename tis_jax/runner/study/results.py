"""What a run of a study came to: read from its workdir, kept as a row of a CSV."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tis_jax.runner.figures import read_columns
from tis_jax.runner.study.plan import PlannedRun
from tis_jax.runner.workdir import changes

LOG = "output.log"
"""What a run said, in its workdir."""

# They change neither what a run computes nor what is measured of it.
_FREE = ("checkpoint.", "log.", "data.gsm8k_dir")
_CURVE = "pass_at_1@"


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run came to.

  Attributes:
    arm: its name.
    point: setting -> value of every axis, as text.
    seed: as text; "" for the base's own.
    state: "finished"; "diverged", it ended in a loss that is not finite; "stale", its
      workdir holds another config; "unfinished".
    reason: why it is not finished, in words.
    summary: of the run, flat, and means over its steps of what else was asked for.
    curve: step -> held-out pass@1.
  """

  arm: str
  point: Mapping[str, str]
  seed: str
  state: str
  reason: str = ""
  summary: Mapping[str, float] = dataclasses.field(default_factory=dict)
  curve: Mapping[int, float] = dataclasses.field(default_factory=dict)

  @property
  def place(self) -> tuple[str, ...]:
    """Arm and point: what the runs of all seeds share."""
    return (self.arm, *self.point.values())


def collect(
  run: PlannedRun, folder: Path, columns: Sequence[str] = (), failure: str = ""
) -> Result:
  """The result of a planned run, from its workdir.

  Args:
    run: of `plan`.
    folder: of the workdirs.
    columns: metrics that are averaged over the steps, where the summary lacks them.
    failure: why its process just failed, if it did.
  """
  workdir = folder / run.name
  seed = "" if run.seed is None else str(run.seed)
  told = Result(run.arm, run.point, seed, "unfinished", "not made yet")
  if changed := changes(run.config, workdir, _FREE):
    settings = "; ".join(changed)
    reason = f"{run.name} holds a run with other settings ({settings})"
    return dataclasses.replace(told, state="stale", reason=reason)
  summary = workdir / "summary.json"
  if summary.exists():
    numbers = json.loads(summary.read_text())
    metrics = read_columns(workdir / "metrics.jsonl")
    for name in columns:
      if name not in numbers and name in metrics:
        numbers[name] = float(np.nanmean(metrics[name]))
    curve = evaluations(metrics, "eval/pass_at_1")
    return dataclasses.replace(
      told, state="finished", reason="", summary=numbers, curve=curve
    )
  if failure or (workdir / LOG).exists():
    reason = failure or last_words(workdir / LOG)
    # What the files say of the study holds wherever they lie.
    reason = reason.replace(f"{workdir.resolve()}/", "")
    told = dataclasses.replace(told, reason=reason)
  if any(workdir.glob("bad_batch_*.npz")):
    return dataclasses.replace(told, state="diverged")
  return told


def evaluations(metrics: Mapping[str, np.ndarray], name: str) -> dict[int, float]:
  """Step -> value, at the steps that have one."""
  there = ~np.isnan(metrics[name])
  steps, values = metrics["step"][there], metrics[name][there]
  return {int(step): float(value) for step, value in zip(steps, values, strict=True)}


def last_words(log: Path) -> str:
  """The last line that names an error, else the last line."""
  lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
  lines = [line for line in lines if line] or ["it said nothing"]
  errors = [line for line in lines if line.partition(":")[0].endswith("Error")]
  return (errors or lines)[-1]


def to_csv(results: Sequence[Result]) -> str:
  """A row a run: arm, axes, seed, state, reason, summary, curve; six digits a number.

  >>> row = Result("tis", {"train.steps": "5"}, "0", "finished", "",
  ...              {"pass_at_1/final": 1 / 3}, {0: 0.5, 5: 1 / 3})
  >>> print(to_csv([row]))
  arm,train.steps,seed,state,reason,pass_at_1/final,pass_at_1@0,pass_at_1@5
  tis,5,0,finished,,0.333333,0.5,0.333333
  >>> from_csv(to_csv([row]))[0].curve
  {0: 0.5, 5: 0.333333}
  """
  axes = list(results[0].point)
  names = list(dict.fromkeys(name for r in results for name in r.summary))
  steps = sorted({step for r in results for step in r.curve})
  head = ["arm", *axes, "seed", "state", "reason", *names]
  rows = [[*head, *(f"{_CURVE}{step}" for step in steps)]]
  for r in results:
    numbers = [r.summary.get(name) for name in names]
    numbers += [r.curve.get(step) for step in steps]
    cells = ["" if x is None else f"{x:.6g}" for x in numbers]
    rows.append([r.arm, *r.point.values(), r.seed, r.state, r.reason, *cells])
  lines: list[str] = []
  writer = csv.writer(_Lines(lines), lineterminator="\n")
  writer.writerows(rows)
  return "".join(lines)


def from_csv(text: str) -> list[Result]:
  """What `to_csv` wrote."""
  head, *rows = csv.reader(text.splitlines())
  axes = head[1 : head.index("seed")]
  words = {"arm", *axes, "seed", "state", "reason"}
  results = []
  for row in rows:
    cells = dict(zip(head, row, strict=True))
    numbers = {k: float(x) for k, x in cells.items() if k not in words and x}
    results.append(
      Result(
        cells["arm"],
        {name: cells[name] for name in axes},
        cells["seed"],
        cells["state"],
        cells["reason"],
        {k: x for k, x in numbers.items() if not k.startswith(_CURVE)},
        {
          int(k.removeprefix(_CURVE)): x
          for k, x in numbers.items()
          if k.startswith(_CURVE)
        },
      )
    )
  return results


class _Lines:
  """What the csv module can write to."""

  def __init__(self, lines: list[str]):
    self.write = lines.append
