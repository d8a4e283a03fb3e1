"""From rollout records to learner batches: filtering, carrying over, remembering.

A learner step takes a fixed number of groups, records hold another number, and dynamic
sampling drops groups without signal. What a record has left over waits for the next
step. `position` says all of it in JSON, so a restarted learner goes on with the very
next group.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tis_jax.advantages import shaping
from tis_jax.learner import Batch, concatenate, from_rollouts, take_rows
from tis_jax.rollouts import Rollout, with_padded_sets
from tis_jax.store import RolloutReader, StoreError


class _Held(NamedTuple):
  """Groups of one record that no step has taken yet."""

  writer: str
  seq: int
  rows: Batch

  @property
  def groups(self) -> list[int]:
    return list(dict.fromkeys(self.rows.group_ids.tolist()))


class BatchStream:
  """Batches of whole groups, in the order of the records.

  Attributes:
    rows: counts of rows `trained` (handed out), `filtered` (in groups without signal),
      `taken` (read from the store) and `gone` (of records that vanished from it).

  Args:
    reader: gives the records; its cursor must be the one in `position`.
    groups: groups a batch.
    filter_groups: leave out groups whose rewards are all alike (dynamic sampling).
    kept_width: room for the tokens that sampling kept, of records that have as much of
      it as they need.
    position: of an earlier stream on the same store; None begins.
  """

  def __init__(
    self,
    reader: RolloutReader,
    *,
    groups: int,
    filter_groups: bool = False,
    kept_width: int = 0,
    position: Mapping[str, Any] | None = None,
  ):
    self._reader = reader
    self._groups = groups
    self._filter_groups, self._kept_width = filter_groups, kept_width
    self._held: list[_Held] = []
    self.rows: Counter[str] = Counter()
    if position is not None:
      self.rows.update(position["rows"])
      self._held = [self._reread(*held) for held in position["held"]]

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
    left = rows["taken"] - rows["trained"] - rows["filtered"] - self.held_rows
    return left + rows["gone"]

  @property
  def position(self) -> dict[str, Any]:
    """Where the stream is, in JSON: the cursor, the groups held, the counts."""
    held = [[h.writer, h.seq, h.groups] for h in self._held]
    return {"cursor": dict(self._reader.cursor), "held": held, "rows": dict(self.rows)}

  def next(self, version: int, while_waiting: Callable[[], None]) -> Batch:
    """The next batch; waits for records.

    Args:
      version: the learner's own; a record of a later one is set aside by the reader.
      while_waiting: called between looks at an empty store; may raise.
    """
    while self._held_groups < self._groups:
      self._take_record(version, while_waiting)
      if self._filter_groups and self._held_groups < self._groups:
        # Writers wait for the learner; a step that needs more records must say so.
        self._reader.store.release(self._reader.cursor)
    wanted, taken, left = self._groups, [], []
    for held in self._held:
      groups = held.groups
      chosen = np.isin(held.rows.group_ids, groups[:wanted])
      if wanted:
        taken.append(take_rows(held.rows, chosen))
      if len(groups) > wanted:
        left.append(held._replace(rows=take_rows(held.rows, ~chosen)))
      wanted = max(wanted - len(groups), 0)
    self._held = left
    batch = concatenate(taken)
    self.rows["trained"] += len(batch.rewards)
    return batch

  def _take_record(self, version, while_waiting):
    gone = len(self._reader.lost)
    (rollout,) = self._reader.take(1, version, while_waiting=while_waiting)
    rows = self._rows(rollout)
    before = len(rows.rewards)
    # A record that nobody can read had as many rows as the next.
    self.rows["gone"] += before * (len(self._reader.lost) - gone)
    self.rows["taken"] += before
    if self._filter_groups:
      held = rows.mask.any(axis=1)
      varied = shaping.has_variance(rows.rewards, rows.group_ids, where=held)
      rows = take_rows(rows, shaping.groups_of_rows(varied, rows.group_ids))
      self.rows["filtered"] += before - len(rows.rewards)
    if len(rows.rewards):
      self._held.append(_Held(rollout.header.writer, rollout.header.seq, rows))

  def _rows(self, rollout: Rollout) -> Batch:
    return from_rollouts([with_padded_sets(rollout, self._kept_width)])

  def _reread(self, writer: str, seq: int, groups: list[int]) -> _Held:
    rollout = self._reader.store.get_rollout(writer, seq)
    if rollout is None:
      raise StoreError(f"record {seq} of {writer!r} is gone, and a step needs it")
    rows = self._rows(rollout)
    return _Held(writer, seq, take_rows(rows, np.isin(rows.group_ids, groups)))


def needed_from(position: Mapping[str, Any]) -> dict[str, int]:
  """For each writer, the first record that a stream at `position` still needs.

  >>> needed_from({"cursor": {"a": 5, "b": 2}, "held": [["a", 3, [0, 7]]]})
  {'a': 3, 'b': 2}
  """
  needed = dict(position["cursor"])
  for writer, seq, _ in position["held"]:
    needed[writer] = min(needed[writer], seq)
  return needed
