"""Hears what a cluster generates: Tunix's learner throws the log-probs away."""

import threading
from collections.abc import Callable
from typing import Any


class Tap:
  """Stands where a cluster's `generate` stood, and keeps the last output of a thread.

  A thread each, since Tunix generates the next batch in one while it evaluates in
  another.
  """

  def __init__(self, generate: Callable):
    self._generate = generate
    self._of_thread = threading.local()

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    self._of_thread.output = self._generate(*args, **kwargs)
    return self._of_thread.output

  def take(self) -> Any:
    """The output of this thread's last call, once."""
    output = self._of_thread.output
    del self._of_thread.output
    return output
