"""What stands before a response, read and kept until all that go on from it do."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.engines.native.cache import capacities, covering, empty
from tis_jax.engines.native.layout import Layout
from tis_jax.engines.native.steps import Plan, Read, last_logits, read

CHUNK = 512
"""Tokens of a prompt that are read by one call."""
_FEW = 4


class Held(NamedTuple):
  """Where a sequence that has been read stands.

  Attributes:
    read: the sequences of one call.
    row: its own there.
    routed: int16 [length, layers, experts of a token], to which experts its tokens were
      sent; None where it is not recorded.
  """

  read: Read
  row: int
  routed: np.ndarray | None = None


class Reader:
  """Reads sequences of tokens, few or many by a call, whatever their lengths.

  Attributes:
    few: sequences that every call has room for.

  Args:
    plan: of the compilations.
    most: sequences that one call reads; 4 is the other number.
    longest: tokens that a sequence may have.
    cache_dtype: of keys and values.
  """

  def __init__(self, plan: Plan, most: int, longest: int, cache_dtype):
    self._plan, self._cache_dtype = plan, cache_dtype
    self.few, self._many = min(_FEW, most), most
    chunked = (-(-size // CHUNK) * CHUNK for size in capacities(longest))
    sizes = zip(capacities(longest), chunked, strict=True)
    self._widths = tuple(size if size <= CHUNK else whole for size, whole in sizes)

  def read(
    self, layout: Layout, sequences: Sequence[np.ndarray]
  ) -> Iterator[list[Held]]:
    """Reads them, and gives back after every call what stands now.

    Args:
      layout: the params.
      sequences: int32 [length] each, not empty.

    Yields:
      A list, empty until all that it was waiting for has been read.
    """
    enough = -(-len(sequences) // self.few) * self.few >= self._many
    rows = self._many if enough else self.few
    for first in range(0, len(sequences), rows):
      yield from self._batch(layout, sequences[first : first + rows], rows)

  def _batch(self, layout, sequences, rows) -> Iterator[list[Held]]:
    plan = self._plan
    lengths = np.ones(rows, np.int32)
    lengths[: len(sequences)] = [len(ids) for ids in sequences]
    width = covering(self._widths, int(lengths.max()))
    chunk = min(width, CHUNK)
    tokens = np.zeros((rows, width), np.int32)
    for row, ids in enumerate(sequences):
      tokens[row, : len(ids)] = ids
    cache = empty(plan.config, rows, width, self._cache_dtype)
    hidden = jnp.zeros((rows, plan.config.hidden_size), plan.dtype)
    parts = []
    for start in range(0, int(lengths.max()), chunk):
      if start:
        yield []
      part = tokens[:, start : start + chunk]
      cache, hidden, routed = read(
        plan, layout, part, np.int32(start), lengths, cache, hidden
      )
      parts.append(routed)
    done = Read(cache, last_logits(layout, hidden))
    routed_R = [None] * len(sequences)
    if plan.law.routed_experts:
      whole = np.concatenate(jax.device_get(parts), axis=1)
      routed_R = [row[: len(ids)] for row, ids in zip(whole, sequences, strict=False)]
    yield [Held(done, *there) for there in enumerate(routed_R)]


class Prefixes:
  """The prompts of a batch, read when they are needed and forgotten when they are not.

  A response that was interrupted goes on from its prompt and what it has said: to this
  class that is a prompt, too.

  Args:
    reader: that reads them.
    prompts: int32 [length] each.
    uses: {prompt: how many responses go on from it}.
    count: told how many tokens are read.
  """

  def __init__(
    self,
    reader: Reader,
    prompts: Sequence[np.ndarray],
    uses: Mapping[int, int],
    count: Callable[[int], None],
  ):
    self._reader, self._prompts, self._count = reader, prompts, count
    self._held: dict[int, Held] = {}
    self._left: Counter[int] = Counter(uses)
    self._job: Iterator[None] | None = None

  def advance(
    self,
    layout: Layout,
    wanted: Sequence[int],
    later: Iterable[int],
    *,
    all_of_it: bool,
  ) -> bool:
    """Reads on at what is wanted: one call, or all of it; whether all stands ready.

    Args:
      layout: the params.
      wanted: prompts that are needed now.
      later: those needed next, in order: they fill the calls that have room.
      all_of_it: reads until all stands.
    """
    while not self._ready(wanted):
      if self._job is None:
        missing = [i for i in dict.fromkeys(wanted) if i not in self._held]
        others = (i for i in later if i not in self._held and i not in missing)
        spare = -len(missing) % self._reader.few
        missing += itertools.islice(dict.fromkeys(others), spare)
        self._job = self._reading(layout, missing)
      if next(self._job, self) is self:
        self._job = None
      elif not all_of_it:
        break
    return self._ready(wanted)

  def use(self, prompt: int) -> Held:
    """What was read of a prompt, for one of its responses."""
    held = self._held[prompt]
    self._left[prompt] -= 1
    if not self._left[prompt]:
      del self._held[prompt]
    return held

  def forget(self) -> None:
    """Drops everything that was read: the params are others now."""
    self._held.clear()
    self._job = None

  def _ready(self, wanted: Sequence[int]) -> bool:
    return all(i in self._held for i in wanted)

  def _reading(self, layout: Layout, missing: list[int]) -> Iterator[None]:
    ids = [self._prompts[i] for i in missing]
    self._count(sum(map(len, ids)))
    done = 0
    for held in self._reader.read(layout, ids):
      self._held.update(zip(missing[done:], held, strict=False))
      done += len(held)
      yield
