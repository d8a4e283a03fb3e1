"""The next batch, read, decoded, packed and on the device before it is needed."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, Protocol

from tis_jax.learner import Batch
from tis_jax.learner.state import placed
from tis_jax.store import NoRolloutsError

_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 0.05


class Stream(Protocol):
  """Batches one after the other; `BatchStream.next` says what is given and taken."""

  @property
  def position(self) -> Any: ...

  def next(
    self,
    version: int,
    while_waiting: Callable[[], None],
    *,
    step: int,
    urgent: Callable[[], bool],
  ) -> Batch: ...


class Ready(NamedTuple):
  """A batch for one step.

  Attributes:
    batch: prepared, on the device.
    rows: as the stream gave it.
    position: of the stream behind it, for a checkpoint of the step that takes it.
  """

  batch: Any
  rows: Batch
  position: Mapping[str, Any]


class Ahead:
  """Reads one batch ahead of the learner, in a thread.

  A context manager. What was read ahead and not taken is in no position: a restart
  reads it again.

  Attributes:
    position: of the stream, behind the batch that was taken last.
    rows: of that batch, as the stream gave it.

  Args:
    stream: of batches, a `BatchStream`, say; nobody else may use it meanwhile.
    place: where a batch goes, a sharding or a device; None leaves it on the host.
    prepare: makes of a batch, on the host, what a step takes: packs its rows, say.
  """

  def __init__(
    self,
    stream: Stream,
    place: Any = None,
    prepare: Callable[[Batch], Any] = lambda batch: batch,
  ):
    self._stream, self._place, self._prepare = stream, place, prepare
    self._thread = ThreadPoolExecutor(1, "reader")
    self._wanted, self._closed = threading.Event(), threading.Event()
    self._pending: Future[Ready] | None = None
    self._since = 0.0
    self.position: Mapping[str, Any] = stream.position
    self.rows: Any = None

  def begin(self, step: int, version: int) -> None:
    """Starts reading the batch of the step that follows `step` steps.

    Args:
      step: steps taken before it.
      version: under which these params are, or will be, published.
    """
    self._pending = self._thread.submit(self._read, step, version)

  def take(self, while_waiting: Callable[[], None]) -> Any:
    """The batch that `begin` began to read.

    Args:
      while_waiting: called again and again until it is there; may raise.

    Raises:
      NoRolloutsError: none came for ten minutes of waiting; says who was writing.
    """
    assert self._pending is not None, "`begin` comes first"
    self._since = time.monotonic()
    self._wanted.set()
    try:
      while not self._pending.done():
        while_waiting()
        wait([self._pending], timeout=_LOOK_SECONDS)
      ready = self._pending.result()
    finally:
      self._wanted.clear()
    self.position, self.rows = ready.position, ready.rows
    return ready.batch

  def __enter__(self) -> "Ahead":
    return self

  def __exit__(self, *_) -> None:
    self._closed.set()
    self._thread.shutdown()

  def _read(self, step: int, version: int) -> Ready:
    while True:
      try:
        rows = self._stream.next(
          version, self._look, step=step, urgent=self._wanted.is_set
        )
        break
      except NoRolloutsError:
        waited = time.monotonic() - self._since
        # While an update or an evaluation runs, nobody waits and nothing is late.
        if self._wanted.is_set() and waited >= _PATIENCE_SECONDS:
          raise
    position = self._stream.position
    batch = self._prepare(rows)
    if self._place is not None:
      batch = placed(batch, self._place)
    return Ready(batch, rows, position)

  def _look(self) -> None:
    if self._closed.is_set():
      raise CancelledError
