"""A look at a run through its store: versions, backlog, who lives, last errors."""

import dataclasses
import json
import math
import time
from typing import Any

from tis_jax.store import params
from tis_jax.store.notes import is_writer, seq_of
from tis_jax.store.store import Store

# A sampler says that it lives every second, and every five over a network.
_SILENT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class WriterView:
  """A writer, as its heartbeat and its records show it.

  Attributes:
    name: of the writer.
    state: what it says that it does; "silent" if it says nothing any more, "unheard of"
      if it never has.
    age: seconds since it was heard of, by the clocks of both sides; NaN for never.
    version: of the params that it holds; None if it has not said.
    behind: versions that these are behind the newest.
    waiting: its records that the learner has not taken.
    taken: its records that the learner has, as last published.
    aside: its records that were set aside.
  """

  name: str
  state: str
  age: float
  version: int | None
  behind: int | None
  waiting: int
  taken: int
  aside: int


@dataclasses.dataclass(frozen=True)
class SetAside:
  """A record that was not trained on: when, whose, and why."""

  time: float
  writer: str
  seq: int
  reason: str
  error: str


@dataclasses.dataclass(frozen=True)
class Overview:
  """A run at one moment.

  Attributes:
    url, run, incarnation: of its store.
    stopped: why its samplers are to end; None while they are not.
    version: newest version of the params; None before the first.
    age: seconds since it was published, by the clocks of both sides.
    step: of the learner, when it was.
    versions: that can be read, oldest first.
    torn: versions of which only a part is there.
    writers: by name.
    set_aside: the last records that were, newest first.
  """

  url: str
  run: str
  incarnation: int
  stopped: str | None
  version: int | None
  age: float
  step: int | None
  versions: tuple[int, ...]
  torn: tuple[int, ...]
  writers: tuple[WriterView, ...]
  set_aside: tuple[SetAside, ...]

  @property
  def waiting(self) -> int:
    """Records that the learner has not taken."""
    return sum(writer.waiting for writer in self.writers)

  def as_text(self) -> str:
    """For people: a header, a line for each writer, the last errors."""
    published = "none yet"
    if self.version is not None:
      step = "" if self.step is None else f", of step {self.step}"
      published = (
        f"{self.version}{step}, {_ago(self.age)}; {len(self.versions)} can be read"
        + (f", torn: {', '.join(map(str, self.torn))}" if self.torn else "")
      )
    lines = [
      f"store    {self.url}",
      f"run      {self.run}, incarnation {self.incarnation}"
      + (f", stopped: {self.stopped}" if self.stopped else ""),
      f"params   {published}",
      f"backlog  {self.waiting} records wait for the learner",
    ]
    if self.writers:
      lines += ["", *_table(_WRITER_COLUMNS, map(_writer_row, self.writers))]
    if self.set_aside:
      lines += ["", "set aside, newest first"]
      lines += [
        f"  {x.writer}/{x.seq}  {_ago(time.time() - x.time)}  {x.reason}: {x.error}"
        for x in self.set_aside
      ]
    return "\n".join(lines)


def overview(store: Store, errors: int = 5) -> Overview:
  """Looks at a run; writes nothing.

  Args:
    store: of the run.
    errors: how many of the records set aside to tell of.

  Example:
    >>> store = Store.open("memory://doctest-overview", run="demo", create=True)
    >>> _ = store.publish(0, {}, {"cursor": {}, "step": 7})
    >>> store.heartbeat("local0", state="generating", version=0)
    >>> print(overview(store).as_text())
    store    memory://doctest-overview/
    run      demo, incarnation 1
    params   0, of step 7, 0 s ago; 1 can be read
    backlog  0 records wait for the learner
    <BLANKLINE>
    writer  state       heard of  params  waiting  taken  set aside
    local0  generating  0 s ago   0       0        0      0
  """
  manifest = store.latest()
  found = params.versions(store.kv)
  beats, taken = store.heartbeats(), store.taken(manifest)
  records, aside = _by_writer(store, "rollouts/"), _by_writer(store, "quarantine/")
  newest = None if manifest is None else manifest.version
  step = None if manifest is None else manifest.info.get("step")
  return Overview(
    store.url,
    store.run,
    store.incarnation,
    store.stopped(),
    newest,
    math.nan if manifest is None else time.time() - manifest.created,
    step,
    tuple(version for version, whole in found.items() if whole),
    tuple(version for version, whole in found.items() if not whole),
    tuple(
      _writer(name, beats.get(name), newest, taken.get(name, 0), records, aside)
      for name in sorted({*beats, *records, *aside})
    ),
    tuple(_last_errors(store, aside, errors)),
  )


def _by_writer(store: Store, prefix: str) -> dict[str, list[int]]:
  found: dict[str, list[int]] = {}
  for key in store.kv.keys(prefix):
    writer, _, name = key.removeprefix(prefix).partition("/")
    seq = seq_of(name)
    if is_writer(writer) and seq is not None:
      found.setdefault(writer, []).append(seq)
  return found


def _writer(name, beat: dict[str, Any] | None, newest, taken, records, aside):
  state, age, version = "unheard of", math.nan, None
  if beat is not None:
    state, age, version = beat.get("state", "?"), beat["age"], beat.get("version")
    if age > _SILENT_SECONDS and state != "ended":
      state = "silent"
  behind = None if None in (newest, version) else newest - version
  waiting = sum(seq >= taken for seq in records.get(name, ()))
  return WriterView(
    name, state, age, version, behind, waiting, taken, len(aside.get(name, ()))
  )


def _last_errors(store: Store, aside: dict[str, list[int]], count: int):
  # The highest numbers are the newest of each writer.
  places = [(w, seq) for w, seqs in aside.items() for seq in sorted(seqs)[-count:]]
  keys = [f"quarantine/{writer}/{seq:010d}.json" for writer, seq in places]
  errors = []
  for (writer, seq), read in zip(places, store.kv.get_many(keys), strict=True):
    try:
      why = json.loads(read.value or b"")
      said = float(why["time"]), str(why["reason"]), str(why["error"])
    except (ValueError, KeyError, TypeError):
      said = 0.0, "?", "its reason cannot be read"
    errors.append(SetAside(said[0], writer, seq, *said[1:]))
  return sorted(errors, key=lambda x: -x.time)[:count]


_WRITER_COLUMNS = (
  "writer",
  "state",
  "heard of",
  "params",
  "waiting",
  "taken",
  "set aside",
)


def _writer_row(x: WriterView) -> tuple[str, ...]:
  held = "?" if x.version is None else str(x.version)
  held += f" ({x.behind} behind)" if x.behind else ""
  counts = map(str, (x.waiting, x.taken, x.aside))
  return (x.name, x.state, _ago(x.age), held, *counts)


def _table(columns, rows) -> list[str]:
  cells = [columns, *rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [[f"{x:<{w}}" for x, w in zip(row, widths, strict=True)] for row in cells]
  return ["  ".join(line).rstrip() for line in lines]


def _ago(seconds: float) -> str:
  if not math.isfinite(seconds):
    return "never"
  if seconds < 120:
    return f"{seconds:.0f} s ago"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min ago"
  return f"{seconds / 3600:.0f} h ago"
