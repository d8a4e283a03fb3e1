"""The learner's side of the rollouts: each once, in turn, the bad ones set aside."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping

from tis_jax.rollouts import BadRolloutError, Limits, Rollout, decode, validate
from tis_jax.rollouts.errors import ForeignRolloutError
from tis_jax.store.errors import NoRolloutsError
from tis_jax.store.store import Store, quarantine_key, rollout_key

_DISCOVERY_SECONDS = 1.0


class RolloutReader:
  """Takes rollouts in a fair order over the writers, from a cursor on.

  The cursor holds the next sequence number of every writer. Kept in the learner's
  checkpoint, it makes a restart neither lose nor repeat a rollout: two readers that
  start from one cursor on one store give the same rollouts. The turn passes from
  writer to writer in the order of their names; one that has nothing ready is skipped.

  A record that must not be trained on is moved to `quarantine/` with its reason,
  counted, and passed over.

  Attributes:
    cursor: {writer: next sequence number}, JSON; what `take` has handed out is below.
    quarantined: {reason: records} set aside by this reader.
    lost: {(writer, sequence number)} whose record vanished; empty unless someone
      deletes by hand.

  Args:
    store: from `Store.open`.
    cursor: where to begin; None for the oldest records there are.
    limits: what records must keep to, beside belonging to the store's run.
    poll_seconds: pause between looks at an empty store.
    on_quarantine: called with one sentence for every record set aside.
  """

  def __init__(
    self,
    store: Store,
    cursor: Mapping[str, int] | None = None,
    *,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    poll_seconds: float = 0.01,
    on_quarantine: Callable[[str], None] | None = None,
  ):
    self.store = store
    self.cursor: dict[str, int] = dict(cursor or {})
    self.quarantined: Counter[str] = Counter()
    self.lost: set[tuple[str, int]] = set()
    self._limits = limits._replace(run=store.run)
    self._digests: dict[int, str | None] = {}
    self._poll_seconds = poll_seconds
    self._on_quarantine = on_quarantine
    self._ahead: dict[str, tuple[int, bytes]] = {}
    self._discovered = float("-inf")

  def take(
    self,
    records: int,
    learner_version: int,
    *,
    timeout: float = 600.0,
    while_waiting: Callable[[], None] | None = None,
  ) -> list[Rollout]:
    """The next `records` rollouts; waits for them.

    Args:
      records: how many, in records (one sampler batch each).
      learner_version: the newest version published; a record of a later one is set
        aside.
      timeout: seconds to wait for them all.
      while_waiting: called between looks at an empty store; may raise.

    Raises:
      NoRolloutsError: they did not come. Nothing is taken: the cursor stays.
    """
    deadline = time.monotonic() + timeout
    cursor = dict(self.cursor)
    taken: list[Rollout] = []
    while len(taken) < records:
      if time.monotonic() - self._discovered > _DISCOVERY_SECONDS:
        self._discover(cursor)
      found = self._next(cursor)
      if found is not None:
        rollout = self._examined(*found, learner_version)
        if rollout is not None:
          taken.append(rollout)
        continue
      if time.monotonic() > deadline:
        raise NoRolloutsError(self._status(records, len(taken), timeout))
      if while_waiting is not None:
        while_waiting()
      time.sleep(self._poll_seconds)
    self.cursor = cursor
    return taken

  def _next(self, cursor):
    """The next (writer, seq, bytes) that is ready, moving `cursor` over it."""
    writers = sorted(cursor)
    missing = [w for w in writers if self._ahead.get(w, (-1,))[0] != cursor[w]]
    keys = [rollout_key(w, cursor[w]) for w in missing]
    for writer, read in zip(missing, self.store.kv.get_many(keys), strict=True):
      if read.value is not None:
        self._ahead[writer] = (cursor[writer], read.value)
    # The number of records passed over says whose turn it is, so the cursor alone does.
    turn = sum(cursor.values()) % max(len(writers), 1)
    for writer in writers[turn:] + writers[:turn]:
      seq, data = self._ahead.get(writer, (-1, b""))
      if seq == cursor[writer]:
        del self._ahead[writer]
        cursor[writer] += 1
        return writer, seq, data
    return None

  def _examined(self, writer, seq, data, learner_version) -> Rollout | None:
    try:
      rollout = decode(data)
      header = rollout.header
      if (header.writer, header.seq) != (writer, seq):
        raise ForeignRolloutError(
          f"says that it is record {header.seq} of {header.writer!r:.40}"
        )
      validate(
        rollout,
        self._limits,
        learner_version=learner_version,
        params_digest=self._digest(header.version),
      )
    except BadRolloutError as error:
      self._set_aside(writer, seq, data, error)
      return None
    return rollout

  def _digest(self, version: int) -> str | None:
    """Of the params published as `version`; None once they are deleted."""
    if version not in self._digests:
      manifest = self.store.manifest(version)
      self._digests = {version: None if manifest is None else manifest.digest}
    return self._digests[version]

  def _set_aside(self, writer, seq, data, error: BadRolloutError):
    key = quarantine_key(writer, seq)
    why = {"reason": error.reason, "error": str(error), "time": time.time()}
    self.store.kv.put_many({key: data, f"{key}.json": json.dumps(why).encode()})
    self.store.kv.delete(rollout_key(writer, seq))
    self.quarantined[error.reason] += 1
    if self._on_quarantine is not None:
      self._on_quarantine(f"set aside {writer}/{seq} ({error.reason}): {error}")

  def _discover(self, cursor):
    """Finds new writers, and steps over sequence numbers that have no record."""
    self._discovered = time.monotonic()
    present: dict[str, set[int]] = {}
    for key in self.store.kv.keys("rollouts/"):
      writer, _, seq = key.removeprefix("rollouts/").partition("/")
      if seq.isdecimal():  # Whatever else lies there is not the library's.
        present.setdefault(writer, set()).add(int(seq))
    for writer, seqs in present.items():
      cursor.setdefault(writer, min(seqs))
      aside: set[int] | None = None
      while cursor[writer] < max(seqs) and cursor[writer] not in seqs:
        # The listing is no snapshot: a missing number may have been written meanwhile.
        if self.store.kv.get(rollout_key(writer, cursor[writer])).value is not None:
          break
        if aside is None:
          aside = set(self.store.quarantined(writer, cursor[writer]))
        if cursor[writer] not in aside:
          self.lost.add((writer, cursor[writer]))
        cursor[writer] += 1

  def _status(self, records, taken, timeout) -> str:
    beats = self.store.heartbeats()
    writers = [
      f"{name} {beat.get('state', '?')}, heard of {beat['age']:.0f} s ago"
      for name, beat in beats.items()
    ]
    aside = f"; set aside: {dict(self.quarantined)}" if self.quarantined else ""
    return (
      f"store {self.store.url}: {taken} of {records} rollouts after {timeout:g} s; "
      f"next {self.cursor or 'none'}; writers: {'; '.join(writers) or 'none'}{aside}"
    )
