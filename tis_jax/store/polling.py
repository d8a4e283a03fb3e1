"""How often to look at a store: often where it is free, seldom where it costs."""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

_LOCAL = ("file", "memory")
_SLICE_SECONDS = 0.1


def is_local(url: str) -> bool:
  """Whether a look at the store is a system call, and no request over a network."""
  return urlsplit(url).scheme in _LOCAL


class Pauses:
  """Pauses between looks: even ones here, longer and longer ones over a network.

  Args:
    url: of the store.
    seconds: of every pause; None for 0.01 on this machine, and else 0.25, then twice
      the last one up to 4.

  >>> pauses = Pauses("s3://bucket/run/")
  >>> [pauses.next() for _ in range(6)]
  [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
  >>> pauses.restart(), pauses.next(), Pauses("file:///srv/run/").next()
  (None, 0.25, 0.01)
  """

  def __init__(self, url: str, seconds: float | None = None):
    first, longest = (0.01, 0.01) if is_local(url) else (0.25, 4.0)
    self.first = first if seconds is None else seconds
    self._longest = longest if seconds is None else seconds
    self.restart()

  def restart(self) -> None:
    """Something came: the next pause is the shortest again."""
    self._seconds = self.first

  def next(self) -> float:
    """Seconds that the next pause takes."""
    seconds = self._seconds
    self._seconds = min(2 * seconds, self._longest)
    return seconds

  def wait(self, meanwhile: Callable[[], object] | None = None) -> None:
    """Makes the next pause.

    Args:
      meanwhile: called several times a second; ends the pause by raising, or by
        returning something true.
    """
    end = time.monotonic() + self.next()
    while (left := end - time.monotonic()) > 0:
      if meanwhile is not None and meanwhile():
        return
      time.sleep(min(left, _SLICE_SECONDS))
