"""From rollout records to learner batches: filtering, carrying over, remembering.

A learner step takes a fixed number of groups, records hold another number, and dynamic
sampling drops groups without signal. What a record has left over waits for the next
step. `position` says all of it in JSON, so a restarted learner goes on with the very
next group.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tis_jax.advantages import shaping
from tis_jax.learner import Batch, concatenate, from_rollouts, take_rows
from tis_jax.rollouts import Rollout, with_padded_sets
from tis_jax.runner.lineage import Lineage
from tis_jax.store import RolloutReader, Store

_DONE = {"recompute": "recomputed", "reconstruct": "reconstructed"}


class Held(NamedTuple):
  """Groups of one record that no step has taken yet, and the prompt of each."""

  writer: str
  seq: int
  rows: Batch
  prompts: Mapping[int, int]

  @property
  def groups(self) -> list[int]:
    return list(dict.fromkeys(self.rows.group_ids.tolist()))


def read(
  rollout: Rollout, lineage: Lineage, kept_width: int, routed: bool = False
) -> Held:
  """A record as rows of a batch, with room for kept tokens, and versions as steps."""
  rows = from_rollouts([with_padded_sets(rollout, kept_width)])
  if not routed:
    rows = rows._replace(routed_experts=None)
  rows = rows._replace(versions=lineage.steps(rows.versions))
  ids, prompts = rows.group_ids.tolist(), rollout.prompt_ids.tolist()
  held = dict(zip(ids, prompts, strict=True))
  return Held(rollout.header.writer, rollout.header.seq, rows, held)


def reread(
  store: Store,
  chosen: Sequence[Any],
  lineage: Lineage,
  kept_width: int,
  routed: bool = False,
) -> Held | None:
  """Groups of a record that a `RolloutReader` has handed out; None where it is gone.

  Args:
    store: of the run.
    chosen: (writer, sequence number, groups).
    lineage: versions as steps.
    kept_width: room for kept tokens.
    routed: keep the routed experts.
  """
  writer, seq, groups = chosen
  rollout = store.get_rollout(writer, seq)
  if rollout is None:
    return None
  held = read(rollout, lineage, kept_width, routed)
  rows = np.isin(held.rows.group_ids, groups)
  return held._replace(rows=take_rows(held.rows, rows))


class BatchStream:
  """Batches of whole groups, in the order of the records.

  Attributes:
    rows: counts of rows `trained` (handed out), `filtered` (in groups without signal),
      `taken` (read from the store) and `gone` (of records that vanished from it); of
      those staler than the bound `late_dropped`, and `late_kept`, `late_recomputed` or
      `late_reconstructed` among the trained ones.

  Args:
    reader: gives the records; its cursor must be the one in `position`.
    groups: groups a batch.
    filter_groups: leave out groups whose rewards are all alike (dynamic sampling).
    kept_width: room for the tokens that sampling kept, of records that have as much of
      it as they need.
    routed: keep the routed experts, for a learner that replays them.
    max_staleness: the bound, in learner steps; a group with an older token is late.
      None: none is.
    late: what becomes of a late group. "drop" leaves it out, and trains the next one of
      its prompt however late it is: what takes long to sample is not left out for ever.
    lineage: versions as steps; None takes them for steps.
    position: of an earlier stream on the same store; None begins.
    on_choice: told, before a batch is handed out, of which step it is and of which
      groups of which records it is made: what another process needs to make the same.
  """

  def __init__(
    self,
    reader: RolloutReader,
    *,
    groups: int,
    filter_groups: bool = False,
    kept_width: int = 0,
    routed: bool = False,
    max_staleness: int | None = None,
    late: str = "keep",
    lineage: Lineage | None = None,
    position: Mapping[str, Any] | None = None,
    on_choice: Callable[[int, Mapping[str, Any]], None] = lambda step, choice: None,
  ):
    self._reader = reader
    self._groups = groups
    self._filter_groups = filter_groups
    self._kept_width, self._routed = kept_width, routed
    self._max_staleness, self._late = max_staleness, late
    self._lineage = lineage or Lineage()
    self._on_choice = on_choice
    self._held: list[Held] = []
    self._dropped: set[int] = set()
    self._short = False
    self._released: tuple[int, dict[str, int]] | None = None
    self.rows: Counter[str] = Counter()
    if position is not None:
      self.rows.update(position["rows"])
      self._dropped = set(position.get("dropped", ()))
      held = [
        reread(reader.store, held, self._lineage, kept_width, routed)
        for held in position["held"]
      ]
      # Rows that are gone since count as lost: taken, and neither trained nor held.
      self._held = [found for found in held if found is not None]
      self._short = len(self._held) < len(held)

  @property
  def quarantined(self) -> Counter[str]:
    """Records set aside, by reason."""
    return self._reader.quarantined

  @property
  def _held_groups(self) -> int:
    return sum(len(held.groups) for held in self._held)

  @property
  def held_rows(self) -> int:
    """Rows that were read and wait for a step."""
    return sum(len(held.rows.rewards) for held in self._held)

  @property
  def lost_rows(self) -> int:
    """Rows that vanished from the store, or were read and came to nothing."""
    rows = self.rows
    left_out = rows["filtered"] + rows["late_dropped"]
    left = rows["taken"] - rows["trained"] - left_out - self.held_rows
    return left + rows["gone"]

  @property
  def position(self) -> dict[str, Any]:
    """Where the stream is, in JSON: the cursor, the groups held, the counts, the rows
    lost, and the prompts whose next group is not dropped."""
    return {
      "cursor": dict(self._reader.cursor),
      "held": [[h.writer, h.seq, h.groups] for h in self._held],
      "rows": dict(self.rows),
      "lost": self.lost_rows,
      "dropped": sorted(self._dropped),
    }

  def next(
    self,
    version: int,
    while_waiting: Callable[[], None],
    *,
    step: int | None = None,
    urgent: Callable[[], bool] = lambda: True,
  ) -> Batch:
    """The next batch, `versions` in it as steps; waits for records.

    Args:
      version: the learner's own; a record of a later one is set aside by the reader.
      while_waiting: called between looks at an empty store; may raise.
      step: that staleness is counted from; that of `version` by default.
      urgent: whether the learner waits. Writers are let go on beyond their allowance,
        where groups were left out, only then.
    """
    step = self._lineage.step(version) if step is None else step

    def look():
      while_waiting()
      now = (version, dict(self._reader.cursor))
      if self._short and urgent() and now != self._released:
        # Writers wait for the learner; a step that needs more records must say so.
        self._released = now
        self._reader.store.release(now[1], version)

    self._drop_late(step)
    while self._held_groups < self._groups:
      self._take_record(version, look)
      self._drop_late(step)
    wanted, taken, left, records = self._groups, [], [], []
    for held in self._held:
      groups = held.groups
      chosen = np.isin(held.rows.group_ids, groups[:wanted])
      if wanted:
        self._count_late(held, groups[:wanted], step)
        taken.append(take_rows(held.rows, chosen))
        records.append((held.writer, held.seq, groups[:wanted]))
      if len(groups) > wanted:
        left.append(held._replace(rows=take_rows(held.rows, ~chosen)))
      wanted = max(wanted - len(groups), 0)
    self._held, self._short = left, False
    self._on_choice(step, {"records": records, "attempts": self._lineage.attempts})
    batch = concatenate(taken)
    self.rows["trained"] += len(batch.rewards)
    return batch

  def _take_record(self, version, while_waiting):
    gone = len(self._reader.lost)
    (rollout,) = self._reader.take(1, version, while_waiting=while_waiting)
    held = read(rollout, self._lineage, self._kept_width, self._routed)
    rows = held.rows
    before = len(rows.rewards)
    # A record that nobody can read had as many rows as the next.
    self.rows["gone"] += before * (len(self._reader.lost) - gone)
    self.rows["taken"] += before
    if self._filter_groups:
      sampled = rows.mask.any(axis=1)
      varied = shaping.has_variance(rows.rewards, rows.group_ids, where=sampled)
      rows = take_rows(rows, shaping.groups_of_rows(varied, rows.group_ids))
      self.rows["filtered"] += before - len(rows.rewards)
      self._short |= len(rows.rewards) < before
    if len(rows.rewards):
      self._held.append(held._replace(rows=rows))

  def _late_rows(self, rows: Batch, step: int) -> np.ndarray:
    """Which rows are of groups with a token that is staler than the bound."""
    if self._max_staleness is None:
      return np.zeros(len(rows.rewards), bool)
    tokens = rows.mask & (step - rows.versions > self._max_staleness)
    return np.isin(rows.group_ids, rows.group_ids[tokens.any(axis=1)])

  def _drop_late(self, step: int) -> None:
    """Leaves out the groups that are late, save where their prompt's last one was."""
    if self._late != "drop":
      return
    left = []
    for held in self._held:
      prompts = np.array([held.prompts[g] for g in held.rows.group_ids.tolist()])
      late = self._late_rows(held.rows, step) & ~np.isin(prompts, list(self._dropped))
      self._dropped |= set(prompts[late].tolist())
      self.rows["late_dropped"] += int(late.sum())
      self._short |= bool(late.any())
      if not late.all():
        left.append(held._replace(rows=take_rows(held.rows, ~late)))
    self._held = left

  def _count_late(self, held: Held, groups: list[int], step: int) -> None:
    late = self._late_rows(held.rows, step) & np.isin(held.rows.group_ids, groups)
    if late.any():
      self.rows[f"late_{_DONE.get(self._late, 'kept')}"] += int(late.sum())
    self._dropped -= {held.prompts[group] for group in groups}


def late_rows(rows: Mapping[str, int]) -> dict[str, float]:
  """Rows staler than the bound, by what became of them; nothing where none was.

  >>> late_rows({"trained": 8, "late_kept": 2})
  {'rollouts/late_kept': 2.0}
  """
  late = {name: count for name, count in rows.items() if name.startswith("late_")}
  return {f"rollouts/{name}": float(count) for name, count in late.items() if count}


def needed_from(position: Mapping[str, Any]) -> dict[str, int]:
  """For each writer, the first record that a stream at `position` still needs.

  >>> needed_from({"cursor": {"a": 5, "b": 2}, "held": [["a", 3, [0, 7]]]})
  {'a': 3, 'b': 2}
  """
  needed = dict(position["cursor"])
  for writer, seq, _ in position["held"]:
    needed[writer] = min(needed[writer], seq)
  return needed
