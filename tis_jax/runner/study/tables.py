"""The results of a study as Markdown."""

from collections.abc import Mapping, Sequence

import numpy as np

from tis_jax.runner.statistics import Interval, collapsed, dip, interval, paired
from tis_jax.runner.study.results import Result

RUN_COLUMNS = (
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
"""What is shown of every run, where a study has no arms."""

ARM_COLUMNS = (
  "pass_at_1/final",
  "pass_at_1/gain",
  "reward/mean",
  "mismatch/k3",
  "weight/ess_raw",
  "weight/ess",
  "optimizer/grad_norm",
  "rejected/sequences",
  "support/inexact",
  "staleness/mean",
  "wall_seconds",
)
"""What is shown of every arm."""

_FINAL = "pass_at_1/final"


def page(results: Sequence[Result], columns: Sequence[str] = ()) -> str:
  """All tables of a study. One without arms shows its runs, each a row.

  Args:
    results: in the order of the table.
    columns: names in the summaries; those that no run has are left out. None is the
      usual ones.
  """
  armed = any(result.arm for result in results)
  there = {name for result in results for name in result.summary}
  chosen = columns or (ARM_COLUMNS if armed else RUN_COLUMNS)
  columns = [name for name in chosen if name in there]
  if not armed:
    return runs_table(results, columns)
  tables = [arms_table(results, columns)]
  if differences := differences_table(results):
    tables.append(differences)
  if any(result.state != "finished" for result in results):
    tables.append(missing_table(results))
  return "\n".join(tables)


def runs_table(results: Sequence[Result], columns: Sequence[str]) -> str:
  """A row a run."""
  rows = [
    [
      *map(_cell, result.point.values()),
      *(_number(result.summary.get(name)) for name in columns),
      result.state if result.state == "finished" else _cell(result.reason),
    ]
    for result in results
  ]
  return _table([*results[0].point, *columns, "state"], rows)


def arms_table(results: Sequence[Result], columns: Sequence[str]) -> str:
  """A row an arm and point: mean ± 95% interval over the seeds, dips and collapses.

  `runs` are those that finished, of those planned.
  """
  rows = []
  for place, there in places(results).items():
    done = [result.summary for result in there if result.state == "finished"]
    dips = [dip(summary) for summary in done if "pass_at_1/lowest" in summary]
    rows.append(
      [
        *map(_cell, place),
        f"{len(done)} of {len(there)}",
        _number(min(dips, default=None)),
        f"{sum(map(collapsed, done))}",
        *(
          shown(interval([summary[name] for summary in done if name in summary]))
          for name in columns
        ),
      ]
    )
  head = ["arm", *results[0].point, "runs", "worst dip", "collapses", *columns]
  return _table(head, rows)


def differences_table(results: Sequence[Result]) -> str:
  """Final pass@1 of each arm less the first arm's, paired by seed, at every point.

  Empty if there is nothing to compare.
  """
  finals = {
    place: {r.seed: r.summary[_FINAL] for r in there if r.state == "finished"}
    for place, there in places(results).items()
  }
  first = results[0].arm
  rows = [
    [
      *map(_cell, (arm, *point)),
      shown(found := paired(values, finals[first, *point])),
      str(found.count),
    ]
    for (arm, *point), values in finals.items()
    if arm != first
  ]
  head = ["arm", *results[0].point, f"{_FINAL} less that of {first}", "pairs"]
  return _table(head, rows) if rows else ""


def missing_table(results: Sequence[Result]) -> str:
  """The runs that the other tables do not count, and why."""
  rows = [
    [*map(_cell, (*r.place, r.seed)), r.state, _cell(r.reason)]
    for r in results
    if r.state != "finished"
  ]
  return _table(["arm", *results[0].point, "seed", "state", "reason"], rows)


def places(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
  """The results of every arm and point, in the order in which they come."""
  found: dict[tuple[str, ...], list[Result]] = {}
  for result in results:
    found.setdefault(result.place, []).append(result)
  return found


def flat(results: Sequence[Result]) -> Mapping[str, float]:
  """The study's numbers by `arm/column`: means over the seeds that finished.

  Points are part of the name: `none/max_staleness-4/pass_at_1/final`. Without an arm's
  name there is `wall_seconds`, of all runs together, and `mismatch/k3`, the mean.
  """
  numbers: dict[str, float] = {}
  for there in places(results).values():
    done = [result.summary for result in there if result.state == "finished"]
    point = [f"{k.rpartition('.')[2]}-{v}" for k, v in there[0].point.items()]
    path = "/".join([name for name in (there[0].arm, *point) if name])
    for name in done[0] if done else ():
      values = [summary[name] for summary in done if name in summary]
      numbers[f"{path}/{name}"] = float(np.mean(values))
  done = [result.summary for result in results if result.state == "finished"]
  if done:
    numbers["mismatch/k3"] = float(np.mean([x["mismatch/k3"] for x in done]))
    numbers["wall_seconds"] = float(sum(x["wall_seconds"] for x in done))
  return numbers


def shown(found: Interval) -> str:
  """`mean ± half`, to the digits that the interval warrants.

  >>> shown(Interval(0.74321, 0.0123, 5)), shown(Interval(0.74321, float("nan"), 1))
  ('0.743 ± 0.012', '0.7432')
  >>> shown(Interval(9.49e-5, 7.5e-6, 3))
  '(9.49 ± 0.75)e-5'
  """
  if not found.count:
    return ""
  if not found.half > 0:
    return _number(found.mean)
  largest = max(abs(found.mean), found.half)
  power = int(np.floor(np.log10(largest))) if largest < 1e-3 else 0
  mean, half = found.mean / 10.0**power, found.half / 10.0**power
  digits = max(0, 1 - int(np.floor(np.log10(half))))
  text = f"{mean:.{digits}f} ± {half:.{digits}f}"
  return f"({text})e{power}" if power else text


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}" if value % 1 else f"{value:.0f}"


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(row) + " |\n" for row in (head, *rows)]
  lines.insert(1, "|" + "---|" * len(head) + "\n")
  return "".join(lines)
