"""The learner's side of the rollouts: each once, in turn, the bad ones set aside."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tis_jax.rollouts import BadRolloutError, Limits, Rollout, decode, validate
from tis_jax.rollouts.errors import ForeignRolloutError, OversizedRolloutError
from tis_jax.store.errors import NoRolloutsError
from tis_jax.store.notes import is_writer, seq_of
from tis_jax.store.polling import Pauses, is_local
from tis_jax.store.store import Store, quarantine_key, rollout_key

_DISCOVERY_SECONDS, _REMOTE_DISCOVERY_SECONDS = 1.0, 10.0
# No writer runs so far ahead; a number beyond is not one of the library's.
_FAR = 100_000


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
      deletes by hand, or a copy of the learner has gone on with the run meanwhile.

  Args:
    store: from `Store.open`.
    cursor: where to begin; None for the oldest records there are.
    limits: what records must keep to, beside belonging to the store's run.
    poll_seconds: pause between looks at an empty store; None for what suits its URL.
    on_quarantine: called with one sentence for every record set aside or lost.
    strictly: take in turn from these writers and from nobody else, and wait for whose
      turn it is: the order then depends on nobody's speed.
  """

  def __init__(
    self,
    store: Store,
    cursor: Mapping[str, int] | None = None,
    *,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    poll_seconds: float | None = None,
    on_quarantine: Callable[[str], None] | None = None,
    strictly: Sequence[str] | None = None,
  ):
    self.store = store
    self._strictly = None if strictly is None else tuple(strictly)
    self.cursor: dict[str, int] = dict.fromkeys(strictly or (), 0) | dict(cursor or {})
    self.quarantined: Counter[str] = Counter()
    self.lost: set[tuple[str, int]] = set()
    self._limits = limits._replace(run=store.run)
    self._digests: dict[int, str | None] = {}
    self._pauses = Pauses(store.url, poll_seconds)
    self._discovery_seconds = (
      _DISCOVERY_SECONDS if is_local(store.url) else _REMOTE_DISCOVERY_SECONDS
    )
    self._on_quarantine = on_quarantine
    self._ahead: dict[str, tuple[int, bytes | None]] = {}
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
      learner_version: the newest version published, or being published; a record of
        a later one is set aside.
      timeout: seconds to wait for them all.
      while_waiting: called between looks at an empty store; may raise.

    Raises:
      NoRolloutsError: they did not come. Nothing is taken: the cursor stays.
    """
    deadline = time.monotonic() + timeout
    cursor = dict(self.cursor)
    taken: list[Rollout] = []
    while len(taken) < records:
      if time.monotonic() - self._discovered > self._discovery_seconds:
        self._discover(cursor, learner_version)
      found = self._next(cursor)
      if found is not None:
        self._pauses.restart()
        rollout = self._examined(*found, learner_version)
        if rollout is not None:
          taken.append(rollout)
        continue
      if time.monotonic() > deadline:
        raise NoRolloutsError(self._status(records, len(taken), timeout))
      if while_waiting is not None:
        while_waiting()
      self._pauses.wait(while_waiting)
    self.cursor = cursor
    return taken

  def _next(self, cursor):
    """The next (writer, seq, bytes) that is ready, moving `cursor` over it."""
    writers = sorted(cursor)
    # The number of records passed over says whose turn it is, so the cursor alone does.
    turn = sum(cursor.values()) % max(len(writers), 1)
    in_turn = writers[turn:] + writers[:turn]
    if self._strictly is not None:
      in_turn = in_turn[:1]
    missing = [w for w in in_turn if self._ahead.get(w, (-1,))[0] != cursor[w]]
    for writer, data in self._read(missing, cursor):
      self._ahead[writer] = (cursor[writer], data)
    for writer in in_turn:
      seq, data = self._ahead.get(writer, (-1, b""))
      if seq == cursor[writer]:
        del self._ahead[writer]
        cursor[writer] += 1
        return writer, seq, data
    return None

  def _read(self, writers, cursor):
    """(writer, bytes) of the next records that are there; None for too many bytes."""
    kv = self.store.kv
    keys = [rollout_key(writer, cursor[writer]) for writer in writers]
    # Asked before the bytes are fetched, which would all stand in memory at once.
    exceed = kv.exceed_many(keys, self._limits.record_bytes)
    sane = [key for key, long in zip(keys, exceed, strict=True) if long is False]
    values = dict(zip(sane, kv.get_many(sane), strict=True))
    for writer, key, long in zip(writers, keys, exceed, strict=True):
      if long:
        yield writer, None
      elif key in values and values[key].value is not None:
        yield writer, values[key].value

  def _examined(self, writer, seq, data, learner_version) -> Rollout | None:
    try:
      if data is None:
        raise OversizedRolloutError(f"more than {self._limits.record_bytes:,} bytes")
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
    # Of one that is too long to be read only the reason stays.
    kept = {key: data or b"", f"{key}.json": json.dumps(why).encode()}
    self.store.kv.put_many(kept)
    self.store.kv.delete(rollout_key(writer, seq))
    self.quarantined[error.reason] += 1
    if self._on_quarantine is not None:
      self._on_quarantine(f"set aside {writer}/{seq} ({error.reason}): {error}")

  def _discover(self, cursor, learner_version):
    """Finds new writers, and steps over sequence numbers that have no record."""
    self._discovered = time.monotonic()
    present: dict[str, set[int]] = {}
    for key in self.store.kv.keys("rollouts/"):
      writer, _, name = key.removeprefix("rollouts/").partition("/")
      seq = seq_of(name)
      # Whatever else lies there is not the library's.
      if seq is not None and self._is_taken_from(writer):
        present.setdefault(writer, set()).add(seq)
    for writer, seqs in present.items():
      cursor.setdefault(writer, min(seqs))
    beats, lost = self.store.heartbeats(), len(self.lost)
    for writer, start in list(cursor.items()):
      seqs = present.get(writer, set())
      # A writer that says it has written the last one may wait for it to be taken.
      said = beats.get(writer, {}).get("seq", 0) - 1
      last = max(seq for seq in (*seqs, said, -1) if seq < start + _FAR)
      last += last not in seqs
      aside: set[int] | None = None
      while cursor[writer] < last and cursor[writer] not in seqs:
        # The listing is no snapshot: a missing number may have been written meanwhile.
        if self.store.kv.get(rollout_key(writer, cursor[writer])).value is not None:
          break
        if aside is None:
          aside = set(self.store.quarantined(writer, cursor[writer]))
        if cursor[writer] not in aside:
          self._lose(writer, cursor[writer])
        cursor[writer] += 1
    if len(self.lost) > lost:
      self.store.release(cursor, learner_version)  # Their places are free.

  def _is_taken_from(self, writer: str) -> bool:
    if self._strictly is not None:
      return writer in self._strictly
    return is_writer(writer)

  def _lose(self, writer: str, seq: int) -> None:
    if (writer, seq) in self.lost:
      return
    self.lost.add((writer, seq))
    if self._on_quarantine is not None:
      self._on_quarantine(
        f"lost {writer}/{seq}: its record is gone from {self.store.url}, deleted by "
        "hand or by another learner, of a copy of this workdir say; it is passed over"
      )

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
