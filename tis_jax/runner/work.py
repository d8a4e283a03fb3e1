"""What every process of a learner does with the state of a run, in one order.

The lead calls these methods, and each tells the other processes to call it, too
(`follow`). A learner of one process tells nobody.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tis_jax.learner import Batch, Checkpoints, TrainState, comparable_batch
from tis_jax.learner.mesh import replicated, row_sharding
from tis_jax.learner.processes import params_here, whole
from tis_jax.learner.state import placed
from tis_jax.runner.ahead import Ahead
from tis_jax.runner.publisher import Publisher, publisher_of
from tis_jax.runner.settings import Settings
from tis_jax.runner.setup import Parts
from tis_jax.runner.team import Team
from tis_jax.store import Store

FRESH: Mapping[str, Any] = {
  "version": -1,
  "position": None,
  "seconds": 0.0,
  "base": None,
  "tightened": 0,
  "histogram": {},
}
"""What a checkpoint says beside the state, before there is one."""


def first_state(
  parts: Parts, checkpoints: Checkpoints, seed: int
) -> tuple[TrainState, Mapping[str, Any], bool]:
  """The state to go on from, what its checkpoint says beside it, and if it has one."""
  restored = checkpoints.restore(parts.learner.abstract_state())
  if restored is None:
    return parts.learner.fresh_state(parts.params, seed), FRESH, False
  state, info = restored
  return state, {**FRESH, **info}, True


@contextlib.contextmanager
def working(
  settings: Settings,
  parts: Parts,
  state: TrainState,
  info: Mapping[str, Any],
  *,
  team: Team,
  store: Store,
  stream: Any,
  checkpoints: Checkpoints,
) -> Iterator["Work"]:
  """While entered, batches are read and params published beside the work.

  Args:
    settings: of the run.
    parts: as the settings have them.
    state: to start from.
    info: what its checkpoint says beside it.
    team: of the processes.
    store: of the run.
    stream: gives the batches, see `Ahead`.
    checkpoints: of the run.
  """
  rows = row_sharding(parts.learner.mesh)
  with (
    Ahead(stream, rows, parts.pack) as ahead,
    publisher_of(settings, store, team) as publisher,
  ):
    yield Work(
      parts,
      state,
      info["tightened"],
      team=team,
      ahead=ahead,
      publisher=publisher,
      checkpoints=checkpoints,
    )


class Work:
  """The learner's state and what changes, shows or keeps it.

  Attributes:
    state: behind the update that was dispatched last.
    parts: of the run, with caps as near to 1 as they were pulled.
    ahead: reads the batches.
    publisher: of the params.

  Args:
    parts: as the settings have them.
    state: to start from.
    tightened: how often the caps were pulled.
    team: of the processes.
    ahead: see above.
    publisher: see above.
    checkpoints: of the run.
  """

  def __init__(
    self,
    parts: Parts,
    state: TrainState,
    tightened: int,
    *,
    team: Team,
    ahead: Ahead,
    publisher: Publisher,
    checkpoints: Checkpoints,
  ):
    self.state = state
    self._as_given, self._team = parts, team
    self.ahead, self.publisher = ahead, publisher
    self._checkpoints = checkpoints
    self._rows: dict[int, Batch] = {}
    self._taken: Any = None
    self._use(parts.tightened(tightened))

  def read(self, step: int, version: int) -> None:
    """Has the batch of the step that follows `step` steps read; see `Ahead.begin`."""
    self._team.tell("read", step, version)
    self.ahead.begin(step, version)

  def take(self, step: int, while_waiting: Callable[[], None] = lambda: None) -> Batch:
    """Waits for the batch that is being read; its rows, as the stream gave them."""
    self._taken = self.ahead.take(while_waiting)
    self._team.tell("take", step)
    self._rows[step] = self.ahead.rows
    return self.ahead.rows

  def update(self, step: int) -> dict[str, Any]:
    """Dispatches the update on the batch that was taken, and does not wait for it.

    Args:
      step: steps taken before it.

    Returns:
      Its metrics, on the device.
    """
    self._team.tell("update", step)
    self.state, metrics = self._update(
      self.state, self._taken, np.int32(step), *self.parts.frozen
    )
    self._taken = None
    # An alarm may be of the step before this one.
    self._rows = {n: rows for n, rows in self._rows.items() if n >= step - 1}
    return metrics

  def publish(self, version: int, info: Mapping[str, Any]) -> None:
    """Starts giving the samplers the params; see `Publisher.publish`."""
    self._team.tell("publish", version, info)
    self.publisher.publish(version, self.state.params, info)

  def save(self, info: Mapping[str, Any], heals: bool = False) -> None:
    """Starts a checkpoint of the state.

    Args:
      info: see `Checkpoints.save`.
      heals: take the state for a good one, though an update was not finite: it is that
        from before.
    """
    self._team.tell("save", info, heals)
    state = self.state
    if heals:
      there = replicated(self.parts.learner.mesh)
      state = state._replace(healthy=placed(np.ones((), bool), there))
    self._checkpoints.save(state, info)

  def params_here(self) -> Any:
    """The params on devices of the lead's own, which can sample from them."""
    self._team.tell("params_here")
    if self._team.count == 1:
      return self.state.params
    return params_here(self.state.params, self._team.leads)

  def scored(self, step: int) -> tuple[Batch, np.ndarray]:
    """A batch with comparable log-probs, and the learner's own, by the params of now.

    Args:
      step: steps taken before the update that it is of, one of the newest two.

    Returns:
      The batch, and fp32 `[B, T]`.
    """
    self._team.tell("scored", step)
    learner, rows = self.parts.learner, self._rows[step]
    batch, _ = comparable_batch(learner.sampling, rows, learner.algorithm.inexact)
    given = placed(batch, row_sharding(learner.mesh))
    return batch, whole(self.parts.score(self.state.params, given).logp)

  def tighten(self, times: int) -> None:
    """Compiles the update with nearer caps, from the next dispatch on."""
    self._team.tell("tighten", times)
    nearer = self._as_given.tightened(times)
    if nearer.learner.algorithm.correct != self.parts.learner.algorithm.correct:
      self._use(nearer)

  def _use(self, parts: Parts) -> None:
    self.parts = parts
    self._update = self._team.compiled(parts.update)
