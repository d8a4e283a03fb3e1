"""Which response has which slot, and when: the host's side of a batch."""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.engines.native.answers import Answers
from tis_jax.engines.native.cache import capacities, covering, empty, places_of, resize
from tis_jax.engines.native.health import Health
from tis_jax.engines.native.layout import Layout
from tis_jax.engines.native.prefixes import Held, Prefixes, Reader
from tis_jax.engines.native.requests import Requests
from tis_jax.engines.native.steps import Block, Plan, decode, fill, no_slots, reread

# A step's worth of tokens while a long prompt is being read beside them.
_STEPS_BETWEEN_CHUNKS = 8
# Slots are filled again when so large a part of them is free.
_FREE_PART = 8


class Version(NamedTuple):
  """Params in use.

  Attributes:
    layout: of them.
    number: of their publication.
  """

  layout: Layout
  number: int


class Schedule:
  """Continuous batching of one batch: a slot whose response has ended takes the next.

  Prompts are read once, whenever the first of their responses begins. Between calls of
  the decoding loop newer params may be taken: what was read of prompts that wait is
  read again then, and with `recompute` also what the running responses have seen.

  Args:
    plan: of the compilations.
    requests: what is to be answered.
    answers: where responses go.
    slots: how many are answered at once.
    longest: places that a slot may need.
    cache_dtype: of keys and values.
    version: to begin with.
    newer: gives newer params, or None; asked between calls.
    recompute: read the running responses again by newer params.
    health: told what happens.
    enough: asked every `every` tokens of a slot, with the finish reasons of then; True
      ends it all. None: never.
    every: tokens.
  """

  def __init__(
    self,
    plan: Plan,
    requests: Requests,
    answers: Answers,
    *,
    slots: int,
    longest: int,
    cache_dtype,
    version: Version,
    newer: Callable[[], Version | None],
    recompute: bool,
    health: Health,
    enough: Callable[[np.ndarray], bool] | None = None,
    every: int = 1,
  ):
    self._plan, self._requests, self._answers = plan, requests, answers
    self._version, self._newer, self._recompute = version, newer, recompute
    self._health = health
    self._enough, self._every, self._drawn = enough, every, 0
    self._sizes = capacities(longest)
    lengths = np.array([len(ids) for ids in requests.prompts], np.int32)
    self._said_R, self._length_R = answers.count.copy(), lengths[requests.prompt_R]
    self._waiting = deque(requests.order)
    self._request_B = np.full(slots, -1)
    self._reader = Reader(plan, requests.together, requests.longest, cache_dtype)
    # A running response may be as long as a slot. Its experts stay those that it had.
    unrecorded = dataclasses.replace(plan, law=plan.law._replace(routed_experts=False))
    self._rereader = Reader(unrecorded, min(slots, 8), longest, cache_dtype)
    self._prefixes = Prefixes(
      self._reader,
      requests.prompts,
      Counter(requests.prompt_R[requests.order].tolist()),
      lambda tokens: health.add(prompt_tokens=tokens),
    )
    impl = jax.random.key_impl(requests.keys)
    self._impl, self._keys = impl, np.asarray(jax.random.key_data(requests.keys))
    cache = empty(plan.config, slots, self._sizes[0], cache_dtype)
    self._slots = no_slots(cache, self._slot_keys(np.zeros(slots, int)))

  def run(self) -> None:
    """Answers everything, or enough."""
    while (self._waiting or self._running.size) and not self._has_enough():
      self._take_newer_params()
      blocks = self._fill()
      if self._running.size:
        blocks.append(self._decode())
        self._collect(blocks)

  def _has_enough(self) -> bool:
    if self._enough is None or self._drawn < self._every:
      return False
    self._drawn = 0
    return self._enough(self._answers.finish_reasons)

  @property
  def _running(self) -> np.ndarray:
    """The slots that are taken."""
    return np.flatnonzero(self._request_B >= 0)

  def _take_newer_params(self) -> None:
    with self._health.phase("params"):
      newer = self._newer()
      if newer is None:
        return
      self._version = newer
      self._prefixes.forget()
      self._health.add(switches=1)
    if self._recompute:
      with self._health.phase("read"):
        self._read_again()

  def _read_again(self) -> None:
    """Fills the cache of the running responses anew."""
    running = self._running
    seen = []
    for slot in running:
      row = self._request_B[slot]
      prompt = self._requests.prompts[self._requests.prompt_R[row]]
      # The token drawn last has not been fed in.
      new = slice(self._said_R[row], self._answers.count[row] - 1)
      said = self._answers.tokens[row, new]
      seen.append(np.concatenate([prompt, said]))
    self._health.add(prompt_tokens=sum(map(len, seen)))
    done = 0
    for held in self._rereader.read(self._version.layout, seen):
      source_B = np.full(len(self._request_B), -1, np.int32)
      for slot, one in zip(running[done:], held, strict=False):
        source_B[slot] = one.row
      if held:
        cache = reread(self._slots.cache, held[0].read.cache, source_B)
        self._slots = self._slots._replace(cache=cache)
      done += len(held)

  def _fill(self) -> list[Block]:
    """Gives free slots to responses that wait, as far as their prompts are read."""
    free = np.flatnonzero(self._request_B < 0)
    rows = [self._waiting[i] for i in range(min(len(free), len(self._waiting)))]
    if not rows:
      return []
    prompts = self._requests.prompt_R[rows].tolist()
    with self._health.phase("read"):
      # While others go on, a long prompt is read chunk by chunk.
      ready = self._prefixes.advance(
        self._version.layout,
        prompts,
        (self._requests.prompt_R[row] for row in self._waiting),
        all_of_it=not self._running.size,
      )
      if not ready:
        return []
      held = [self._prefixes.use(prompt) for prompt in prompts]
      for row, one in zip(rows, held, strict=True):
        prompt = self._length_R[row] - self._said_R[row]
        self._answers.read(row, prompt, one.routed)
      self._request_B[free[: len(rows)]] = rows
      for _ in rows:
        self._waiting.popleft()
      self._resize()
      reads = {id(one.read): one.read for one in held}
      blocks = [
        self._fill_from(read, free[: len(rows)], rows, held) for read in reads.values()
      ]
      # So that its time is told as reading; what comes next needs it anyway.
      jax.block_until_ready(blocks)
      return blocks

  def _fill_from(self, read, free, rows, held: list[Held]) -> Block:
    """Fills those of the slots whose prompts were read together."""
    slots = len(self._request_B)
    source_B, row_B = np.full(slots, -1, np.int32), np.zeros(slots, int)
    for slot, row, one in zip(free, rows, held, strict=True):
      if one.read is read:
        source_B[slot], row_B[slot] = one.row, row
    self._slots, block = fill(
      self._plan,
      self._slots,
      read,
      source_B,
      self._length_R[row_B],
      self._said_R[row_B],
      self._requests.limits[row_B],
      self._slot_keys(row_B),
    )
    return block

  def _slot_keys(self, row_B: np.ndarray) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(self._keys[row_B]), impl=self._impl)

  def _decode(self) -> Block:
    """Draws tokens until enough slots are free, or enough tokens drawn."""
    running = len(self._running)
    steps, enough = self._plan.steps, 1
    if self._enough is not None:
      steps = min(steps, self._every - self._drawn)
    if self._waiting:
      enough = max(1, running + 1 - max(1, len(self._request_B) // _FREE_PART))
      if running < len(self._request_B):
        steps, enough = min(steps, _STEPS_BETWEEN_CHUNKS), 1
    with self._health.phase("decode"):
      self._resize()
      self._slots, block = decode(
        self._plan,
        self._version.layout,
        self._slots,
        np.int32(steps),
        np.int32(enough),
      )
    return block

  def _ends(self, row_R: np.ndarray) -> np.ndarray:
    """Tokens of the prompts and of what has been said in answer to them."""
    return self._length_R[row_R] + self._answers.count[row_R] - self._said_R[row_R]

  def _resize(self) -> None:
    """Makes the cache as wide as one call of the decoding loop may need it."""
    row_R = self._request_B[self._running]
    before_R, end_R = self._length_R[row_R] - self._said_R[row_R], self._ends(row_R)
    # A token is fed in by the step after the one that draws it, the last one never.
    end_R = np.maximum(end_R - 1, self._length_R[row_R]) + self._plan.steps
    last_R = before_R + self._requests.limits[row_R] - 1
    places = covering(self._sizes, int(np.minimum(end_R, last_R).max(initial=1)))
    if places != places_of(self._slots.cache[0]):
      cache = resize(self._slots.cache, places)
      self._slots = self._slots._replace(cache=cache)

  def _collect(self, blocks: list[Block]) -> None:
    """Reads what was drawn, and frees the slots whose responses have ended."""
    with self._health.phase("decode"):
      blocks, live_B = jax.device_get((blocks, self._slots.live_B))
    with self._health.phase("host"):
      tokens = [
        self._answers.take(block, self._request_B, self._version.number)
        for block in blocks
      ]
      ends = self._ends(self._request_B[self._running])
      self._health.add(tokens=sum(tokens[:-1]))
      self._drawn += int(blocks[-1].steps)
      self._health.decoded(
        steps=int(blocks[-1].steps),
        tokens=tokens[-1],
        places=int(ends.sum()),
        capacity=len(live_B) * places_of(self._slots.cache[0]),
        queue=len(self._waiting),
      )
      self._request_B[~live_B] = -1
