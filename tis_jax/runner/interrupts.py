"""Ctrl-C and SIGTERM end a run between two steps, with its state saved."""

import signal


class Interrupted(Exception):
  """The run was asked to stop."""


class Interrupts:
  """While entered, the first signal is noted and a second one acts as it always did.

  Attributes:
    wanted: whether a signal came.
  """

  _SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    self.wanted = False
    self._before = {}

  def check(self) -> None:
    """Raises `Interrupted` if a signal came."""
    if self.wanted:
      raise Interrupted

  def __enter__(self) -> "Interrupts":
    self._before = {s: signal.signal(s, self._note) for s in self._SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self.wanted = True
    signal.signal(number, self._before[number])
