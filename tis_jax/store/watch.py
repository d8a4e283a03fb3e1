"""A sampler's second thread: says that it lives, and sees when it should not."""

import os
import threading
import time
from collections.abc import Mapping

from tis_jax.store.errors import StoreError
from tis_jax.store.polling import is_local
from tis_jax.store.store import Store

RECONFIGURED = "the learner has changed the run's config"

_PERIOD_SECONDS, _REMOTE_PERIOD_SECONDS = 1.0, 5.0
# A batch or a compilation under way may end in its own time, if it is not long.
_GRACE_SECONDS = 60.0


class Watch:
  """Sends heartbeats while the sampler compiles, generates or waits.

  A context manager around the sampler's loop. When there is a reason to end and the
  loop does not come to it (one long batch, with the learner gone), it ends the process.

  Attributes:
    reason: why the sampler should end; None while it should not.
    seq: next record, to be kept current by the loop.
    version: of the params in use, likewise.
    state: what the loop is doing, likewise.
    health: numbers of the writer's, likewise.

  Args:
    store: of the run; used by this thread beside the loop.
    name: of the writer.
    incarnation: of its claim.
    seq: its next record.
    parent: process id; end when it is no longer the parent's.
    period: seconds between heartbeats; by default 1, and 5 over a network.
  """

  def __init__(
    self,
    store: Store,
    name: str,
    incarnation: int,
    seq: int,
    parent: int | None = None,
    period: float | None = None,
  ):
    self.reason: str | None = None
    self.seq = seq
    self.version: int | None = None
    self.state = "starting"
    self.health: Mapping[str, float] = {}
    self._store, self._name, self._incarnation = store, name, incarnation
    self._parent = parent
    usual = _PERIOD_SECONDS if is_local(store.url) else _REMOTE_PERIOD_SECONDS
    self._period = usual if period is None else period
    self._left = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)

  def __enter__(self) -> "Watch":
    self._beat()
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._left.set()
    self._thread.join()
    self.state = "ended"
    if self._store.holds(self._name, self._incarnation):
      self._beat()

  def _run(self) -> None:
    deadline = None
    while not self._left.wait(self._period):
      try:
        self.reason = self.reason or self._why_end()
        if self.reason is None:
          self._beat()
      except StoreError as error:
        self.reason = f"{type(error).__name__}: {error}"
      if self.reason is not None and deadline is None:
        deadline = time.monotonic() + _GRACE_SECONDS
      if deadline is not None and time.monotonic() > deadline:
        print(f"ended in the middle of a batch: {self.reason}", flush=True)
        os._exit(1)

  def _why_end(self) -> str | None:
    if self._parent is not None and os.getppid() != self._parent:
      return f"the process {self._parent} that started this one is gone"
    if not self._store.holds(self._name, self._incarnation):
      return f"another sampler has taken the name {self._name}"
    if (reason := self._store.stopped()) is not None:
      return reason
    return RECONFIGURED if self._store.reconfigured() else None

  def _beat(self) -> None:
    self._store.heartbeat(
      self._name,
      seq=self.seq,
      version=self.version,
      state=self.state,
      health=self.health,
      pid=os.getpid(),
      incarnation=self._incarnation,
    )
