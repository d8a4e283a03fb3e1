"""The sampler process: newest params in, rollout records out."""

import contextlib
import os
import time

import jax

from tis_jax.engines import NativeEngine
from tis_jax.engines.served import ServedEngine
from tis_jax.sampler.settings import Assignment
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import RECONFIGURED, RolloutWriter, Store, Turn, WrongRunError

# Between looks at a store that no learner has opened.
_LOOK_SECONDS = 2.0


def run_sampler(
  url: str, name: str, parent: int | None = None, patience: float = 0.0
) -> str | None:
  """Generates rollouts for the run in a store until it stops; returns why.

  Everything but the name comes from the store. A sampler that is started again under
  its name goes on where the last one ended: with the next record and the next prompts,
  and with noise of its own. When the learner starts again with another config, so does
  the sampler.

  Args:
    url: of the store.
    name: of this writer; one process at a time may have it.
    parent: process id; end when it is no longer the parent's.
    patience: seconds to wait for a learner, where the store holds no run yet or one
      that has been stopped.

  Raises:
    StoreError: the store cannot be reached, or holds no run.
  """
  reason = RECONFIGURED
  while reason == RECONFIGURED:
    store = _open_when_begun(url, name, parent, patience)
    reason = _serve(store, name, parent)
    _say(f"{name} ended: {reason}")
  return reason


def _open_when_begun(url: str, name: str, parent: int | None, patience: float) -> Store:
  """The store with a run that goes on, or as it is when patience has ended."""
  deadline, waits = time.monotonic() + patience, False
  while True:
    late = time.monotonic() >= deadline or parent not in (None, os.getppid())
    try:
      store = Store.open(url)
      if late or store.stopped() is None:
        return store
    except WrongRunError:
      if late:
        raise
    if not waits:
      _say(f"{name} waits for a learner at {url}")
    waits = True
    time.sleep(_LOOK_SECONDS)


def _serve(store: Store, name: str, parent: int | None) -> str | None:
  assignment = Assignment.from_json(store.config)
  writers = assignment.writers
  with (
    RolloutWriter(store, name, writers=writers, parent=parent) as writer,
    contextlib.ExitStack() as ending,
  ):
    engine, environment = build(assignment, f"{store.run}-{name}")
    ending.callback(getattr(engine, "close", lambda: None))
    ending.enter_context(environment)
    # Noise of its own gets a sampler past a record that its engine died of.
    incarnation = 0 if assignment.deterministic else writer.incarnation
    worker = Worker(assignment, name, incarnation, engine, environment, writer.left)
    how = f"{assignment.sampler.engine}, {assignment.sampler.precision}"
    _say(f"{name} begins at record {writer.seq}, {how}, {jax.devices()[0]}")
    if isinstance(engine, NativeEngine):
      # Asked between decoding steps, where the settings want it.
      engine.newer = writer.newer
    for note in environment.notes:
      _say(f"{name}: {note}")
    taken = False
    for turn in writer.turns():
      if turn.params is not None:
        taken = _take(engine, turn, taken)
      before = environment.set_aside.copy()
      rollout = worker.rollout(turn.seq, turn.last)
      writer.health = {**worker.health, "idle": writer.idle}
      writer.write(rollout, worker.left)
      if causes := environment.set_aside - before:
        counts = [
          f"{n} {cause} ({environment.said[cause]})" for cause, n in causes.items()
        ]
        _say(f"{name} record {turn.seq}, answers without a reward: {'; '.join(counts)}")
    return writer.reason


def _take(engine: NativeEngine | ServedEngine, turn: Turn, has: bool) -> bool:
  """Gives an engine new params; one that has some goes on with those if it must."""
  assert turn.params is not None
  try:
    engine.update(turn.params, turn.version, turn.digest)
  except ValueError as error:
    if not has:
      raise
    _say(f"version {turn.version} is refused, the old one used on: {error}")
  return True


def _say(text: str) -> None:
  print(text, flush=True)
