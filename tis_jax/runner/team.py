"""The processes of a learner: the lead decides and says so, and all do the same.

They run one program over one mesh, so each has to dispatch the same updates, saves and
publications in the same order. Process 0 leads: it alone meets the samplers, chooses
records and writes what people read, and before anything that all must do, it tells the
others. What it tells goes through JAX's coordination service, from host to host, beside
whatever the devices compute.

A process that fails or is gone ends the others within `processes.seconds`, also where
they wait for it in the middle of a computation: a thread looks after that.
"""

import contextlib
import dataclasses
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from tis_jax.learner import join_processes
from tis_jax.numerics.checks import check_number
from tis_jax.runner.board import Board
from tis_jax.runner.config import ConfigError
from tis_jax.runner.interrupts import Interrupted

# Orders that the others may have yet to hear: an update waits for all of them.
_KEPT = 64


class ProcessFailedError(RuntimeError):
  """Another process of the learner failed; the message has its words."""


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
  """A learner of several processes, one a host: the same command in each.

  Attributes:
    count: of processes. 1 is a learner that is alone; 0 leaves all of this to JAX,
      which knows TPU pods, Slurm (a process a device), Open MPI and Kubernetes.
    index: of this one, from 0.
    coordinator: HOST:PORT that process 0 listens at, and all reach.
    seconds: without a sign of life from one of them, after which the others end.

  Raises:
    ValueError: several processes and no coordinator, or an index that is none of them.
  """

  count: int = 1
  index: int = 0
  coordinator: str = ""
  seconds: float = 60.0

  def __post_init__(self):
    check_number("count", self.count, at_least=0)
    check_number("seconds", self.seconds, at_least=5)
    if self.count < 2:
      return
    if not 0 <= self.index < self.count:
      raise ValueError(
        f"processes.index is {self.index}, and of {self.count} processes it is 0 to "
        f"{self.count - 1}"
      )
    if not self.coordinator.rpartition(":")[2].isdecimal():
      raise ValueError(
        f"processes.count is {self.count}: set processes.coordinator to HOST:PORT of "
        f"process 0 (it is {self.coordinator!r})"
      )


class Alone:
  """A learner of one process: there is nobody to tell."""

  index, count, leads = 0, 1, True
  too_late: Callable[[], object] = staticmethod(lambda: None)

  def tell(self, *order: Any) -> None:
    """Has the others do the same."""

  def choose(self, step: int, choice: Mapping[str, Any]) -> None:
    """Says which records the batch after `step` steps is made of."""

  def check(self) -> None:
    """Raises what happened to another process."""

  def meet(self) -> None:
    """Waits until all are here."""

  def compiled(self, function: Callable) -> Callable:
    """A jitted function that none runs before all have compiled it."""
    return function

  def failing(self) -> contextlib.AbstractContextManager[None]:
    """While entered, the others are told what ends this process."""
    return contextlib.nullcontext()


class Several:
  """One process of several, between `join_processes` and the end.

  A context manager.

  Attributes:
    index: of this process.
    count: of all.
    too_late: called before this process is ended for another's sake, from a thread.

  Args:
    seconds: see `ProcessSettings`.
  """

  def __init__(self, seconds: float):
    self._board = Board()
    self.index, self.count = self._board.index, self._board.count
    self.too_late: Callable[[], object] = lambda: None
    self._seconds, self._pause = seconds, min(1.0, seconds / 10)
    self._orders, self._meetings = itertools.count(), itertools.count()
    self._stop_asked, self._failed, self._told = False, "", False
    self._deadline = float("inf")
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="team", daemon=True)

  @property
  def leads(self) -> bool:
    return self.index == 0

  def tell(self, *order: Any) -> None:
    """Has the others do the same; nothing where another process leads.

    Args:
      order: JSON: the name of a method of `Work`, and its arguments.
    """
    if self.leads:
      number = next(self._orders)
      self._board.put(f"order/{number}", order)
      self._board.delete(f"order/{number - _KEPT}")

  def hear(self, while_waiting: Callable[[], None]) -> list[Any]:
    """The next order of the lead.

    Args:
      while_waiting: called again and again until it is there; may raise.

    Raises:
      ProcessFailedError: it has failed.
    """
    order = self._board.get(f"order/{next(self._orders)}", while_waiting)
    if order[0] == "fail":
      raise ProcessFailedError(order[1])
    return order

  def choose(self, step: int, choice: Mapping[str, Any]) -> None:
    """Says which records the batch after `step` steps is made of."""
    self._board.put(f"batch/{step}", choice)
    # Nothing is chosen for a step before the one before the last is through.
    self._board.delete(f"batch/{step - 3}")

  def chosen(self, step: int, while_waiting: Callable[[], None]) -> dict[str, Any]:
    """What the lead says with `choose`."""
    return self._board.get(f"batch/{step}", while_waiting)

  def ask_to_stop(self) -> None:
    """Has the lead end the run behind the step that it is at, as by a signal."""
    if not self._stop_asked:
      self._stop_asked = True
      self._board.put(f"stop/{self.index}", True)

  def check(self) -> None:
    """Raises what happened to another process.

    Raises:
      ProcessFailedError: one has failed.
      Interrupted: one was asked to stop.
    """
    if self._failed:
      raise ProcessFailedError(self._failed)
    if self.leads and self._stop_asked:
      raise Interrupted

  def meet(self) -> None:
    """Waits until all are here."""
    self._board.meet(str(next(self._meetings)))

  def compiled(self, function: Any) -> Callable:
    """A jitted function that none runs before all have compiled it.

    On CPUs a collective gives up on a process that comes half a minute late.
    """
    made: dict[Any, Callable] = {}

    def run(*args):
      leaves, tree = jax.tree.flatten(args)
      kind = tree, tuple(map(np.shape, leaves))
      if kind not in made:
        made[kind] = function.lower(*args).compile()
        self.meet()
      return made[kind](*args)

    return run

  @contextlib.contextmanager
  def failing(self) -> Iterator[None]:
    """While entered, the others are told what ends this process.

    To be left before what waits for them: the writer of checkpoints, say.
    """
    try:
      yield
    except BaseException as error:
      if not self._told:
        self._told = True
        self._fail(error)
      raise

  def __enter__(self) -> "Several":
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._closed.set()
    self._thread.join()
    with contextlib.suppress(JaxRuntimeError):  # Whatever ends the run is said already.
      self._board.put(f"beat/{self.index}", "left")
      jax.distributed.shutdown()

  def _fail(self, error: BaseException) -> None:
    if _is_of_a_computation(error):
      # Most likely for the end of another, which is named when it is missed.
      time.sleep(self._seconds + 5 * self._pause)
    if isinstance(error, ProcessFailedError):
      self.tell("fail", str(error))
      return
    words = f"process {self.index} failed: {type(error).__name__}: {error}"
    self.tell("fail", words)
    self._board.put(f"failed/{self.index}", words)

  def _watch(self) -> None:
    """Shows that this process lives, and looks after the others."""
    # Counted in its own beats: where all were suspended, none is missed for it.
    heard = dict.fromkeys(range(self.count), (None, 0))
    for beat in itertools.count():
      if self._closed.wait(self._pause):
        return
      try:
        self._board.put(f"beat/{self.index}", beat)
        self._look_after(heard, beat) if self.leads else self._look_up()
      except JaxRuntimeError:
        pass  # Without process 0 there is no service, and JAX ends the others itself.

  def _look_after(self, heard: dict[int, tuple[Any, int]], now: int) -> None:
    patience = self._seconds / self._pause
    for index, beat in self._board.of_each("beat").items():
      if beat != heard[index][0]:
        heard[index] = beat, now
    lost = [
      index
      for index, (beat, since) in heard.items()
      if beat != "left" and now - since > patience
    ]
    if lost:
      names = ", ".join(map(str, lost))
      self._end_all(
        os.EX_TEMPFAIL,
        f"no sign of life of process {names} of {self.count} for {self._seconds:g} s "
        "(processes.seconds), so all end; the same command, in all of them, goes on "
        "from the newest checkpoint",
      )
    self._stop_asked |= bool(self._board.of_each("stop"))
    if failed := self._board.of_each("failed"):
      self._failed = self._failed or next(iter(failed.values()))
      self._deadline = min(self._deadline, now + patience)
    if now > self._deadline:
      self._end_all(1, f"{self._failed}; the others did not end by themselves")

  def _look_up(self) -> None:
    if over := self._board.of_each("over"):
      self._end(*over[0])

  def _end_all(self, code: int, words: str) -> None:
    self._board.put("over/0", [code, words])
    time.sleep(3 * self._pause)  # In which the others see it.
    self._end(code, words)

  def _end(self, code: int, words: str) -> None:
    """Ends this process from the thread: the main one may wait for ever."""
    self.too_late()
    print(words, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _is_of_a_computation(error: BaseException | None) -> bool:
  """Whether it is what JAX says where a computation fails, or comes of that."""
  while error is not None:
    # A collective that fails while it is dispatched is a ValueError.
    if isinstance(error, JaxRuntimeError) or "Gloo" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


Team = Alone | Several


@contextlib.contextmanager
def joined(settings: ProcessSettings) -> Iterator[Team]:
  """While entered, this process is one of the learner's; the first thing it does.

  Raises:
    ConfigError: JAX does not find out how many processes there are, they do not find
      each other, or this one has computed already.
  """
  if settings.count == 1:
    yield Alone()
    return
  try:
    join_processes(
      settings.coordinator or None,
      settings.count or None,
      settings.index if settings.count else None,
      # A later end, and without a sentence, where this module fails.
      seconds=int(100 + 4 * settings.seconds),
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f"processes.count={settings.count}: {error} Set processes.count, index and "
      "coordinator"
    ) from error
  with Several(settings.seconds) as team:
    yield team
