"""The tables of `benchmarks/doctor.py`: Markdown, of a row for every dump and view."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from tis_jax import doctor


def table(head: list[str], rows: list[list[str]]) -> str:
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def alarms(rows: list[dict[str, Any]]) -> str:
  """False alarms on healthy batches, by source and view."""
  groups = defaultdict(list)
  for row in rows:
    if row["fault"] == "healthy":
      groups[row["source"], row["view"]].append(row)
  lines = []
  for (source, view), found in sorted(groups.items()):
    wrong = Counter(row["verdict"] for row in found if not row["right"])
    said = ", ".join(f"{name} {count}" for name, count in wrong.most_common())
    share = sum(wrong.values()) / len(found)
    lines.append([source, view, str(len(found)), f"{share:.1%}", said])
  return table(["sampler", "view", "dumps", "false alarms", "as"], lines)


def by_strength(rows: list[dict[str, Any]]) -> str:
  """The share that is right where a fault matters, by fault and strength."""
  groups = defaultdict(lambda: defaultdict(list))
  for row in rows:
    if row["fault"] != "healthy":
      key = (row["fault"], row["strength"], row["strong"])
      groups[key][row["view"]].append(row)
  lines = []
  for (fault, strength, strong), views in sorted(groups.items()):
    does = lambda found: [r for r in found if r["effect"] >= 1]
    shown = [fault, f"{strength:g}", "yes" if strong else "", str(len(views["full"]))]
    shown.append(str(len(does(views["full"]))))
    for view in ("full", "alone"):
      found = does(views[view])
      shown.append(share(found, "right") if found else "")
    wrong = Counter(
      r["verdict"] for v in views.values() for r in does(v) if not r["right"]
    )
    others = ", ".join(f"{name} {count}" for name, count in wrong.most_common(3))
    lines.append([*shown, others])
  head = ["fault", "strength", "strong", "dumps", "it matters in"]
  return table([*head, "right there, full", "right there, alone", "wrong as"], lines)


def share(rows: list[dict[str, Any]], of: str) -> str:
  return f"{np.mean([row[of] for row in rows]):.1%}"


def confusion(rows: list[dict[str, Any]], view: str) -> str:
  """Expected verdicts against those given, where a strong fault matters."""
  counts: dict[str, Counter] = defaultdict(Counter)
  for row in rows:
    if row["matters"] and row["view"] == view:
      counts[row["expected"]][row["verdict"]] += 1
  names = [name for name in doctor.VERDICTS if any(c[name] for c in counts.values())]
  lines = []
  for name in doctor.VERDICTS:
    if counts[name]:
      total = sum(counts[name].values())
      lines.append([name, *(str(counts[name][x] or "") for x in names), str(total)])
  return table(["is \\ said", *names, "dumps"], lines)


def summary(rows: list[dict[str, Any]]) -> str:
  """A line a view: right in all dumps of strong faults, right where they matter."""
  lines = []
  for view in ("full", "alone"):
    of_view = [r for r in rows if r["view"] == view]
    well = [r for r in of_view if r["fault"] == "healthy"]
    strong = [r for r in of_view if r["strong"] and r["fault"] != "healthy"]
    sick = [r for r in strong if r["matters"]]
    by_fault = defaultdict(list)
    for row in sick:
      by_fault[row["expected"]].append(row["right"])
    mean = np.mean([np.mean(found) for found in by_fault.values()])
    alarm = 1 - np.mean([row["right"] for row in well])
    of_all = [view, str(len(strong)), share(strong, "right")]
    of_those = [str(len(sick)), share(sick, "right"), f"{mean:.1%}"]
    healthy = [share(sick, "named"), str(len(well)), f"{alarm:.1%}"]
    lines.append([*of_all, *of_those, *healthy])
  head = ["view", "dumps of strong faults", "right", "it matters in", "right there"]
  more = ["mean over verdicts", "named", "healthy dumps", "false alarms"]
  return table([*head, *more], lines)
