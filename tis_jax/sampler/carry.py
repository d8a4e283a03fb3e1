"""Answers that are under way from one record to the next."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from tis_jax.engines import Generation, NativeEngine
from tis_jax.engines.native import INTERRUPTED
from tis_jax.engines.play import Played
from tis_jax.tasks import Environment, prompt_order

# Groups that are under way at once, in records.
_RECORDS = 2


class Group(NamedTuple):
  """The responses to one prompt, under way or finished.

  Attributes:
    draw: its place in the writer's walk over the prompts.
    prompt: in the environment.
    last: the last record that may hold it; its oldest tokens would be too stale for a
      later one.
    generation: what its responses have said.
    digest: of the params that drew its newest token; "" if unknown.
  """

  draw: int
  prompt: int
  last: int
  generation: Generation
  digest: str = ""

  @property
  def finished(self) -> bool:
    return not (self.generation.finish_reasons == INTERRUPTED).any()


class Carry:
  """Makes records of the groups that are finished, and goes on with the others.

  ```
  record seq = the n finished groups that began first
  begun      = all draws of the walk below seq * n + len(left)
  ```

  Every `interrupt_after` tokens it is looked whether a record's groups are finished;
  what is not is interrupted then, and goes on in the next record. Up to two records of
  groups are under way at once. A group that no later record could hold in time is
  finished in this one, so that no token is staler at its use than the run allows: where
  the sampler is as far ahead of the learner as it may be, nothing is interrupted.

  Attributes:
    digest: of the newest params that made a token of the last record; "" if unknown.

  Args:
    engine: that goes on with responses.
    environment: whose prompts and rewards they are, without conversations.
    order_seed: of the writer's walk.
    key: PRNG key; that of draw d's response s is `fold_in(fold_in(key, d), s)`.
    prompts: n, groups of a record.
    samples: responses a group.
    interrupt_after: tokens.
    groups: beyond this many draws nothing is begun before a record needs it; 0 where
      nobody knows how many are trained on.
    left: draws that an earlier holder of the writer's name had begun; they are begun
      again.
  """

  def __init__(
    self,
    engine: NativeEngine,
    environment: Environment,
    *,
    order_seed: int,
    key: jax.Array,
    prompts: int,
    samples: int,
    interrupt_after: int,
    groups: int = 0,
    left: Sequence[int] = (),
  ):
    self.digest = ""
    self._engine, self._environment = engine, environment
    self._order_seed, self._key = order_seed, key
    self._prompts, self._samples = prompts, samples
    self._interrupt_after, self._wanted = interrupt_after, groups
    self._again = sorted(left)
    self._groups: list[Group] = []

  @property
  def left(self) -> tuple[int, ...]:
    """The draws that are begun, and in no record."""
    return tuple(sorted([*self._again, *(group.draw for group in self._groups)]))

  @property
  def under_way(self) -> int:
    """Responses that were interrupted."""
    return sum(
      int((group.generation.finish_reasons == INTERRUPTED).sum())
      for group in self._groups
    )

  def play(self, seq: int, last: int) -> Played:
    """The answers of the record number `seq`, in the order in which they began.

    Args:
      seq: follows that of the call before.
      last: the last record that may hold what begins now.
    """
    self._begin(seq, last)
    if self._chosen(seq) is None:
      self._go_on(seq)
    chosen = self._chosen(seq)
    assert chosen is not None, "the engine goes on until there are enough"
    draws = {group.draw for group in chosen}
    self._groups = [group for group in self._groups if group.draw not in draws]
    return self._played(chosen)

  def _begin(self, seq: int, last: int) -> None:
    """Begins groups, as many as later records can hold in time."""
    most = self._prompts * max(1, min(_RECORDS, last - seq + 1))
    width = self._environment.prompts.tokens.shape[1]
    while len(self._groups) < most:
      draw = self._again[0] if self._again else self._next(seq)
      enough = len(self._groups) >= self._prompts
      if enough and self._wanted and draw >= self._wanted:
        break
      self._again = self._again[1:]
      (prompt,) = prompt_order(len(self._environment), self._order_seed, draw, 1)
      nothing = self._engine.begin(self._samples, width)
      self._groups.append(Group(draw, int(prompt), last, nothing))
    # The most urgent first: so they are already, unless samplers have come or gone.
    self._groups.sort(key=lambda group: (group.last, group.draw))

  def _next(self, seq: int) -> int:
    return seq * self._prompts + len(self.left)

  def _chosen(self, seq: int) -> list[Group] | None:
    """The finished groups that make the record; None while there are not enough."""
    places = self._places(seq, [group.finished for group in self._groups])
    return None if places is None else [self._groups[place] for place in places]

  def _places(self, seq: int, finished: Sequence[bool]) -> list[int] | None:
    """Theirs among the groups, by which are finished.

    There are enough if those that are left fit the records that may hold them.
    """
    chosen = np.flatnonzero(finished)[: self._prompts].tolist()
    left = np.setdiff1d(np.arange(len(self._groups)), chosen).tolist()
    in_time = all(
      place < self._prompts * (self._groups[at].last - seq)
      for place, at in enumerate(left)
    )
    # Samplers that come shorten what each may be ahead: then some are late.
    enough = in_time or all(finished[at] for at in left)
    return chosen if enough and len(chosen) == self._prompts else None

  def _go_on(self, seq: int) -> None:
    """Goes on with everything that is not finished, until a record is."""
    groups, samples = self._groups, self._samples
    prompts = np.repeat([group.prompt for group in groups], samples)
    begun = _stacked([group.generation for group in groups])

    def enough(finish_reasons: np.ndarray) -> bool:
      ongoing = (finish_reasons == INTERRUPTED).reshape(-1, samples).any(axis=1)
      return self._places(seq, (~ongoing).tolist()) is not None

    out = self._engine.go_on(
      self._environment.prompts.tokens[prompts],
      self._environment.prompts.mask[prompts],
      begun,
      more=np.full(len(prompts), begun.tokens.shape[1]),
      keys=_keys(self._key, np.array([group.draw for group in groups]), samples),
      enough=enough,
      every=self._interrupt_after,
    )
    self._groups = [
      group
      if group.finished
      else self._gone_on(group, _rows(out, place * samples, samples))
      for place, group in enumerate(groups)
    ]

  def _gone_on(self, group: Group, generation: Generation) -> Group:
    """The group with what it has said now."""
    newest, digest = _newest(generation), group.digest
    if newest != _newest(group.generation):
      # Of params between the first and the last of a call nobody tells the digest.
      current = newest == self._engine.version
      digest = self._engine.params_digest if current else ""
    return group._replace(generation=generation, digest=digest)

  def _played(self, groups: Sequence[Group]) -> Played:
    environment = self._environment
    generation = _stacked([group.generation for group in groups])
    rows = np.repeat([group.prompt for group in groups], self._samples)
    newest = [_newest(group.generation) for group in groups]
    self.digest = groups[int(np.argmax(newest))].digest
    rewards = environment.rewards(rows, generation.tokens, generation.mask)
    tokens, mask = environment.prompts.tokens[rows], environment.prompts.mask[rows]
    return Played(rows, generation, rewards, tokens, mask)


def check_interruptible(environment: Environment) -> None:
  """Refuses tasks whose responses cannot be interrupted.

  Raises:
    ValueError: they are conversations.
  """
  if environment.turns is not None:
    raise ValueError(
      "sampler.native.interrupt_after: the task has conversations, which are not "
      "handed over while they are under way; set it to 0"
    )


def _newest(generation: Generation) -> int:
  """The newest version that drew a token of it; -1 of none."""
  return int(generation.versions.max(where=generation.mask, initial=-1))


def _stacked(parts: Sequence[Generation]) -> Generation:
  """Rows of several, below each other."""
  one = parts[0]
  there = [name for name in one._fields if getattr(one, name) is not None]
  return Generation(
    **{name: np.concatenate([getattr(x, name) for x in parts]) for name in there}
  )


def _rows(generation: Generation, start: int, count: int) -> Generation:
  """Some of its rows."""
  fields = generation._asdict().items()
  rows = slice(start, start + count)
  return Generation(**{name: x[rows] for name, x in fields if x is not None})


@functools.partial(jax.jit, static_argnums=2)
def _keys(key: jax.Array, draws: np.ndarray, samples: int) -> jax.Array:
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(lambda one: fold(one, np.arange(samples)))(fold(key, draws)).ravel()
