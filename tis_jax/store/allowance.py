"""How far a writer may run ahead of the learner."""

import math
import time

from tis_jax.store.params import Manifest
from tis_jax.store.polling import is_local
from tis_jax.store.store import Store

# Writers that have not been heard of for so long do not count.
_FRESH_SECONDS = 30.0
_REFRESH_SECONDS, _REMOTE_REFRESH_SECONDS = 1.0, 10.0


class Allowance:
  """Says whether a writer may write its next record.

  ```
  ahead = seq - (records the learner has taken) - (records set aside since)
  ahead < ceil(capacity / writers)
  ```

  The run has `capacity` records for all its writers: those of one learner step, times
  the steps that a rollout may be late plus one. Writers are those that are alive, and
  at least those planned, so that the first to start leaves room for the others.

  Args:
    store: of the run.
    name: of the writer.
    capacity: records of all writers together.
    writers: how many the learner has planned.
  """

  def __init__(self, store: Store, name: str, capacity: int, writers: int):
    self._store, self._name = store, name
    self._capacity, self._planned = capacity, writers
    self._refreshed = float("-inf")
    self._share = 0
    self._aside: list[int] = []

  def last(self, manifest: Manifest | None = None) -> int:
    """The last record that tokens sampled now may stand in.

    A later one would be used when they are staler than the run allows.

    Args:
      manifest: of the params that sample them; None for the latest.
    """
    local = is_local(self._store.url)
    seconds = _REFRESH_SECONDS if local else _REMOTE_REFRESH_SECONDS
    if time.monotonic() - self._refreshed > seconds:
      self._refresh()
    taken = self._store.taken(manifest).get(self._name, 0)
    # What was set aside will never be trained on: it must not hold a place.
    aside = sum(taken <= bad for bad in self._aside)
    return taken + aside + self._share - 1

  def _refresh(self) -> None:
    alive = [
      name
      for name, beat in self._store.heartbeats(_FRESH_SECONDS).items()
      if beat.get("state") != "ended"
    ]
    writers = max(len({*alive, self._name}), self._planned)
    self._share = math.ceil(self._capacity / writers)
    self._aside = self._store.quarantined(self._name)
    self._refreshed = time.monotonic()
