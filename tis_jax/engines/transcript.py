"""Conversations as they grow: the arrays of a record, written turn by turn."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tis_jax.engines.protocol import FILL, Generation
from tis_jax.rollouts import ABORTED, LENGTH, tight_sets

_TIGHT = ("kept_offsets", "kept_ids")
# What is not one thing for each token of a response.
_OF_NO_PLACE = ("finish_reasons", "routed_experts", *_TIGHT)


@dataclasses.dataclass
class Row:
  """One conversation, in ids.

  Attributes:
    opening: its prompt.
    response: what was sampled and said since, in order.
    rewards: of its turns.
    finish: `STOP`, `LENGTH` or `ABORTED` once it is over.
    joined: whether nothing was said since the last turn, so that what is sampled next
      goes on with it.
  """

  opening: list[int]
  response: list[int] = dataclasses.field(default_factory=list)
  rewards: list[float] = dataclasses.field(default_factory=list)
  finish: int | None = None
  joined: bool = False

  def reward(self, value: float) -> None:
    """Adds the reward of the turn that was sampled last."""
    if self.joined:
      self.rewards[-1] += value
    else:
      self.rewards.append(value)


class Transcript:
  """The responses of B conversations, side by side.

  Attributes:
    rows: B of them.

  Args:
    openings: ids of each.
    length: T, room for a response.
    pad_id: fills what no response fills.
  """

  def __init__(self, openings: Sequence[Sequence[int]], length: int, pad_id: int = 0):
    self.rows = [Row(list(opening)) for opening in openings]
    shape = (len(openings), length)
    self._length = length
    self._columns: dict[str, np.ndarray] = {
      "tokens": np.full(shape, pad_id, np.int32),
      "mask": np.zeros(shape, bool),
      "sampler_logp": np.zeros(shape, np.float32),
      "versions": np.zeros(shape, np.int32),
      "present": np.ones(shape, bool),
    }
    self._sets: list[Sequence[int]] | None = None

  @property
  def open(self) -> list[int]:
    """The rows that go on."""
    return [i for i, row in enumerate(self.rows) if row.finish is None]

  def room(self, row: int) -> int:
    """Tokens that a response may still have."""
    return self._length - len(self.rows[row].response)

  def openings(self, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What each row opened with, `[B, width]` on the right, and a mask."""
    return _on_the_right([row.opening for row in self.rows], width)

  def prompts(self, width: int) -> tuple[np.ndarray, np.ndarray]:
    """All that was said so far in the open rows, `[B, width]` on the right, and a mask.

    A row that is over has no prompt.
    """
    said = [
      row.opening + row.response if row.finish is None else [] for row in self.rows
    ]
    return _on_the_right(said, width)

  def sampled(self, row: int, generation: Generation) -> list[int]:
    """Takes over the turn that an engine gave a row, as far as there is room for it.

    Returns:
      Its ids.
    """
    count = min(int(generation.mask[row].sum()), self.room(row))
    start = len(self.rows[row].response)
    there = slice(start, start + count)
    for name, values in generation._asdict().items():
      if values is None or name in _OF_NO_PLACE:
        continue
      column = self._column(name, values)
      column[row, there] = values[row, :count]
    if generation.kept_offsets is not None and generation.kept_ids is not None:
      self._take_sets(row, start, count, generation)
    if generation.routed_experts is not None:
      self._take_routed(row, count, generation)
    ids = [int(x) for x in generation.tokens[row, :count]]
    self.rows[row].response += ids
    return ids

  def said(self, row: int, ids: Sequence[int]) -> None:
    """Puts behind a turn what somebody else said, which does not train."""
    start = len(self.rows[row].response)
    self._columns["tokens"][row, start : start + len(ids)] = ids
    self.rows[row].response += ids
    self.rows[row].joined = not ids

  def generation(self) -> Generation:
    """The rows as an engine would have given them; `mask` has the turns alone."""
    columns: dict[str, Any] = dict(self._columns)
    mask = columns["mask"]
    present = columns.pop("present") & mask
    finish = [LENGTH if row.finish is None else row.finish for row in self.rows]
    if self._sets is not None:
      columns |= zip(_TIGHT, tight_sets(self._sets), strict=True)
    return Generation(
      **columns,
      present=None if (present == mask).all() else present,
      finish_reasons=np.array(finish, np.int8),
    )

  def turn_rewards(self, most: int) -> np.ndarray:
    """float32 `[B, most]`, NaN behind the last turn of a row."""
    rewards = np.full((len(self.rows), most), np.nan, np.float32)
    for i, row in enumerate(self.rows):
      rewards[i, : len(row.rewards)] = row.rewards
    return rewards

  def rewards(self) -> np.ndarray:
    """float32 `[B]`: the sum over the turns of each row; 0 of one that was aborted."""
    done = [0.0 if row.finish == ABORTED else sum(row.rewards) for row in self.rows]
    return np.array(done, np.float32)

  def _column(self, name: str, values: np.ndarray) -> np.ndarray:
    if name not in self._columns:
      shape = (len(self.rows), self._length, *values.shape[2:])
      self._columns[name] = np.full(shape, FILL[name], values.dtype)
    return self._columns[name]

  def _take_sets(self, row, start, count, generation: Generation) -> None:
    if self._sets is None:
      self._sets = [()] * (len(self.rows) * self._length)
    offsets, ids = generation.kept_offsets, generation.kept_ids
    assert offsets is not None and ids is not None
    place = row * generation.tokens.shape[1]
    for t in range(count):
      kept = ids[offsets[place + t] : offsets[place + t + 1]]
      self._sets[row * self._length + start + t] = kept.tolist()

  def _take_routed(self, row, count, generation: Generation) -> None:
    """The experts of what was fed in since the last turn; others stay as they were."""
    values, length = generation.routed_experts, generation.tokens.shape[1]
    assert values is not None
    width = values.shape[1] - length
    if "routed_experts" not in self._columns:
      # The prompts of the first turn are as wide as the openings.
      shape = (len(self.rows), width + self._length, *values.shape[2:])
      self._columns["routed_experts"] = np.full(shape, -1, values.dtype)
    held = self._columns["routed_experts"]
    opening, response = self.rows[row].opening, self.rows[row].response
    start = width - len(opening) - len(response)
    found = values[row, start : width + count]
    first = held.shape[1] - self._length - len(opening)
    held = held[row, first : first + len(found)]
    np.copyto(held, found, where=held < 0)


def _on_the_right(rows: Sequence[Sequence[int]], width: int):
  tokens = np.zeros((len(rows), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, ids in enumerate(rows):
    tokens[i, width - len(ids) :] = ids
    mask[i, width - len(ids) :] = True
  return tokens, mask
