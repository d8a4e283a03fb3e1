"""Ctrl-C and SIGTERM end a run between two steps, with its state saved, and in time."""

import os
import signal
import sys
import threading
from collections.abc import Callable


class Interrupted(Exception):
  """The run was asked to stop."""


class Interrupts:
  """While entered, the first signal is noted, and a second one ends the run at once.

  A notice of preemption is a SIGTERM, and a SIGKILL some seconds later: a step or an
  evaluation that takes longer than `seconds` is not waited for.

  Attributes:
    wanted: whether a signal came.

  Args:
    seconds: from the first signal to the end of the process; None for as long as it
      takes.
    too_late: called before the process is ended, from another thread; ends what it has
      started.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(
    self, seconds: float | None = None, too_late: Callable[[], object] | None = None
  ):
    self.wanted = False
    self.too_late = too_late
    self._seconds = seconds
    self._before = {}
    self._timer: threading.Timer | None = None

  def check(self) -> None:
    """Raises `Interrupted` if a signal came."""
    if self.wanted:
      raise Interrupted

  def __enter__(self) -> "Interrupts":
    self._before = {s: signal.signal(s, self._note) for s in self._SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    if self._timer is not None:
      self._timer.cancel()
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    if self.wanted:
      # By an exception, which ends the samplers on its way.
      raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    self.wanted = True
    if self._seconds is not None:
      self._timer = threading.Timer(self._seconds, self._end, [number])
      self._timer.daemon = True
      self._timer.start()

  def _end(self, number) -> None:
    if self.too_late is not None:
      self.too_late()
    sys.stdout.flush()
    os._exit(128 + number)
