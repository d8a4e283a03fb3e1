"""The shared array store: rollouts one way, params the other, under one URL.

```
run                              JSON: run id, schema, incarnation, sampler config
stop                             JSON: which incarnation wants no more rollouts, and why
cursor                           JSON: what the learner has taken since it published
rollouts/<writer>/<seq:010d>     a record (tis_jax.rollouts); never changes
params/...                      params.py, blocks.py
heartbeats/<writer>              JSON: who is alive and what it is doing
claims/<writer>                  JSON: which incarnation of a writer may write
walks/<writer>/<seq:010d>        JSON: prompts that it has begun and not handed over
quarantine/<writer>/<seq:010d>   a record that must not be trained on
quarantine/<writer>/<seq:010d>.json   why
```

Every key has one writer, or moves by conditional write. The same code runs on
`file://`, `memory://` (this process only), `gs://` and `s3://`. Do not fork a process
that has opened a store: TensorStore aborts the child.
"""

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tis_jax.rollouts import Rollout, decode
from tis_jax.rollouts.frame import encoded
from tis_jax.store import blocks, notes, params
from tis_jax.store.blocks import Blocks
from tis_jax.store.errors import (
  AlreadyExistsError,
  StoreError,
  TakenOverError,
  WrongRunError,
  WrongStoreSchemaError,
)
from tis_jax.store.keyvalue import KeyValue, Read
from tis_jax.store.notes import check_writer, seq_of
from tis_jax.store.params import Manifest

STORE_SCHEMA = 2


class Store:
  """One run's store. Made by `Store.open`; safe to use from several threads.

  Attributes:
    kv: the key-value store below.
    url: where it is.
    run: id of the run.
    incarnation: how often a learner has opened the run, from 1.
    config: what the samplers need to know, as JSON.

  Example:
    >>> store = Store.open("memory://doctest-store", run="demo", create=True)
    >>> manifest = store.publish(0, {"w": np.ones(2, np.float32)}, {"cursor": {}})
    >>> reader = Store.open("memory://doctest-store")
    >>> reader.read_params(reader.latest())
    {'w': array([1., 1.], dtype=float32)}
    >>> reader.latest(if_newer_than=0) is None
    True
  """

  def __init__(self, kv: KeyValue, record: Mapping[str, Any]):
    self.kv = kv
    self.run: str = record["run"]
    self.incarnation: int = record["incarnation"]
    self.config: dict[str, Any] = record["config"]
    self._latest: tuple[bytes | None, Manifest | None] = (None, None)

  @property
  def url(self) -> str:
    return self.kv.url

  @classmethod
  def open(
    cls,
    url: str,
    run: str | None = None,
    create: bool = False,
    config: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
  ) -> "Store":
    """Opens the store of a run.

    Args:
      url: `file:///...`, `gs://...`, `s3://...` or `memory://...`.
      run: id of the run; None for whichever is there or, with `create`, a new one.
      create: as the learner: begins the run, or goes on with it, and clears `stop`.
      config: with `create`, what samplers read; None keeps what the run has.
      timeout: seconds after which the store counts as unreachable.

    Raises:
      StoreUnreachableError, StoreReadOnlyError: the URL does not answer, or refuses.
      WrongRunError: there is no run there, or another one.
      WrongStoreSchemaError: another version of the library wrote it.
    """
    kv = KeyValue(url, timeout)
    if not create:
      record = _run_record(kv, kv.get("run"))
      if record is None:
        kv.check_bucket()
        raise WrongRunError(f"store {kv.url} holds no run; start the learner first")
      _check_run(kv, record, run)
      return cls(kv, record)
    record = _enter(kv, run, config)
    kv.delete("stop")
    return cls(kv, record)

  def publish(
    self, version: int, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]
  ) -> Manifest:
    """Publishes params; afterwards `latest` gives them.

    Args:
      version: above every earlier one; `next_version` finds it.
      arrays: parameters by name, in the dtype that the samplers are to read.
      info: JSON, `cursor` among it (see `Manifest`).

    Raises:
      AlreadyExistsError: the version, or a newer one, is published already.
      TakenOverError: another learner has opened the run since; nothing is written.
      WrongRunError: the run has been deleted.
    """
    self._check_incarnation()
    manifest = params.write(self.kv, version, arrays, info)
    params.move_latest(self.kv, version)
    return manifest

  def publish_blocks(
    self,
    version: int,
    arrays: Mapping[str, Blocks],
    info: Mapping[str, Any],
    *,
    part: int,
    parts: int,
  ) -> Manifest | None:
    """Publishes params together with other processes: each its blocks of the arrays.

    Process 0 waits for the others and makes the version known; it reads what they say
    of their blocks, never the blocks.

    Args:
      version: above every earlier one, the same in all processes.
      arrays: the blocks of this process by name, as `learner.local_blocks` finds them.
      info: as in `publish`; of process 0.
      part: number of this process.
      parts: how many there are.

    Returns:
      The manifest in process 0, None in the others.

    Raises:
      AlreadyExistsError, TakenOverError, WrongRunError: as in `publish`.
      StoreUnreachableError: a process did not write its part in time.
    """
    self._check_incarnation()
    prefix = params.folder(version)
    blocks.write(self.kv, prefix, arrays, part)
    if part:
      return None
    described = blocks.gather(self.kv, prefix, parts, self.kv.timeout)
    manifest = params.write_manifest(self.kv, version, described, info)
    params.move_latest(self.kv, version)
    return manifest

  def _check_there(self) -> int:
    """The incarnation of now, of a run that the store still holds."""
    now = self._incarnation_now()
    if now is None:
      raise WrongRunError(f"store {self.url} holds run {self.run!r} no longer")
    return now

  def _check_incarnation(self) -> None:
    if (now := self._check_there()) != self.incarnation:
      raise TakenOverError(
        f"store {self.url}: another learner has gone on with run {self.run!r} (as its "
        f"incarnation {now}; this one is {self.incarnation}), so this one ends"
      )

  def next_version(self, at_least: int = 0) -> int:
    """The smallest version number from `at_least` on that was never used."""
    used = list(params.versions(self.kv))
    latest = self.kv.get(params.LATEST).value
    if latest is not None:
      used.append(params.latest_version(self.kv, latest))
    return max([at_least - 1, *used]) + 1

  def latest(self, if_newer_than: int | None = None) -> Manifest | None:
    """The newest published version; None if there is none newer. A cheap poll."""
    missing = None
    while True:
      generation, manifest = self._latest
      found = self.kv.get(params.LATEST, unless=generation)
      if not found.unchanged:
        manifest = None
        if found.value is not None:
          version = params.latest_version(self.kv, found.value)
          manifest = params.read_manifest(self.kv, version)
          if manifest is None:
            # Deleted between the two reads, if LATEST has moved on.
            if version == missing:
              # A store that vanished under a publication has nothing but its end.
              self._check_there()
              raise StoreError(
                f"store {self.url}: params of version {version} are missing"
              )
            missing = version
            continue
        self._latest = (found.generation, manifest)
      if manifest is None or (
        if_newer_than is not None and manifest.version <= if_newer_than
      ):
        return None
      return manifest

  def manifest(self, version: int) -> Manifest | None:
    """Of a published version; None once it is deleted."""
    return params.read_manifest(self.kv, version)

  def read_params(self, manifest: Manifest) -> dict[str, np.ndarray]:
    """The parameters of a published version, by name.

    Raises:
      ParamsGoneError: deleted meanwhile; take `latest` again.
    """
    return params.read(self.kv, manifest)

  def delete_params(self, keep: int, fresh: float = 60.0) -> list[int]:
    """Deletes old versions; returns which.

    Kept are the newest `keep`, and those that a heartbeat of the last `fresh` seconds
    names.
    """
    if keep < 1:
      raise ValueError(f"keep={keep}: the newest params cannot be deleted")
    found = params.versions(self.kv)
    complete = [version for version, whole in found.items() if whole]
    used = {beat.get("version") for beat in self.heartbeats(fresh).values()}
    used.update(complete[-keep:])
    latest = self.latest()
    used.add(None if latest is None else latest.version)
    # A torn version that is newer than the newest complete one may be in the making.
    newest = max(complete, default=-1)
    old = [version for version in found if version not in used and version < newest]
    for version in old:
      params.delete(self.kv, version)
    return old

  def put_rollout(self, writer: str, seq: int, rollout: Rollout) -> int:
    """Writes a record under the run's id, `writer` and `seq`; returns its bytes.

    Raises:
      AlreadyExistsError: this writer has written `seq` before.
      RolloutShapeError: the arrays do not fit each other.
    """
    header = dataclasses.replace(
      rollout.header, run=self.run, writer=writer, seq=seq, created=time.time()
    )
    parts = encoded(dataclasses.replace(rollout, header=header))
    if not self.kv.create(rollout_key(writer, seq), *parts):
      raise AlreadyExistsError(
        f"store {self.url}: {rollout_key(writer, seq)} exists; are two samplers named "
        f"{writer!r}?"
      )
    return sum(map(len, parts))

  def get_rollout(self, writer: str, seq: int) -> Rollout | None:
    """The record that `writer` wrote as `seq`; None where there is none (any longer).

    Its structure is checked, its values are not: for a record that a `RolloutReader`
    has handed out before.

    Raises:
      BadRolloutError: the bytes are not a record.
    """
    (found,) = self.kv.get_many([rollout_key(writer, seq)])
    return None if found.value is None else decode(found.value)

  def next_seq(self, writer: str) -> int:
    """The first sequence number that `writer` has never used."""
    used = [-1]
    for kind in ("rollouts", "quarantine"):
      for key in self.kv.keys(f"{kind}/{check_writer(writer)}/"):
        seq = seq_of(key.rpartition("/")[2].removesuffix(".json"))
        used.append(-1 if seq is None else seq)
    taken = self.taken().get(writer, 0)
    beat = self.heartbeats().get(writer, {})
    return max(taken, beat.get("seq", 0), max(used) + 1)

  def delete_rollouts(self, cursor: Mapping[str, int]) -> None:
    """Deletes the records below a cursor; it must be in a committed checkpoint."""
    for writer, seq in cursor.items():
      self.kv.delete_span(f"rollouts/{check_writer(writer)}/", f"{seq:010d}")

  def release(self, cursor: Mapping[str, int], version: int | None = None) -> None:
    """Lets writers go on up to `cursor` + capacity before the next publication.

    For a learner that needs more records for a step than usual (it filtered groups).
    It holds until the next publication: a learner that goes on from further back
    takes it back by publishing.

    Args:
      cursor: what has been taken; what was released before under the version stays so.
      version: of the publication that it holds under, which may be under way still;
        None for the latest.
    """
    if version is None:
      manifest = self.latest()
      version = -1 if manifest is None else manifest.version
    before, released = notes.cursor(self.kv.get("cursor").value)
    if before != version:
      released = {}
    furthest = {
      writer: max(cursor.get(writer, 0), released.get(writer, 0))
      for writer in released.keys() | cursor.keys()
    }
    note = {"version": version, "cursor": furthest}
    self.kv.put("cursor", json.dumps(note).encode())

  def taken(self, manifest: Manifest | None = None) -> dict[str, int]:
    """The learner's cursor as last published, or released since.

    Args:
      manifest: the publication to count from; None for the latest.
    """
    manifest = manifest or self.latest()
    published = {} if manifest is None else manifest.cursor
    version, released = notes.cursor(self.kv.get("cursor").value)
    if version != (-1 if manifest is None else manifest.version):
      return dict(published)
    writers = released.keys() | published.keys()
    return {w: max(released.get(w, 0), published.get(w, 0)) for w in writers}

  def quarantined(self, writer: str, start: int = 0) -> list[int]:
    """Sequence numbers from `start` on that were set aside."""
    keys = self.kv.keys(f"quarantine/{check_writer(writer)}/", f"{start:010d}")
    seqs = (seq_of(key.rpartition("/")[2]) for key in keys)
    return [seq for seq in seqs if seq is not None]

  def claim(self, writer: str) -> int:
    """Makes the caller the one `writer` of that name; returns its incarnation, from 1.

    An earlier holder finds out by `holds`.
    """
    key = f"claims/{check_writer(writer)}"

    def next_claim(found: Read) -> bytes:
      before = 0
      if found.value is not None:
        before = notes.note(self.url, key, found.value, "incarnation", int)
      return json.dumps({"incarnation": before + 1, "time": time.time()}).encode()

    return json.loads(self.kv.update(key, next_claim))["incarnation"]

  def holds(self, writer: str, incarnation: int) -> bool:
    """Whether nobody has claimed `writer` since `incarnation`."""
    key = f"claims/{check_writer(writer)}"
    found = self.kv.get(key).value
    return found is not None and incarnation == notes.note(
      self.url, key, found, "incarnation", int
    )

  def heartbeat(self, name: str, **info: Any) -> None:
    """Says that `name` is alive, and what it is doing."""
    value = json.dumps({**info, "time": time.time()}).encode()
    self.kv.put(f"heartbeats/{check_writer(name)}", value)

  def heartbeats(self, fresh: float | None = None) -> dict[str, dict[str, Any]]:
    """The last heartbeat of everyone, or of those heard in the last `fresh` seconds.

    Each has `age` in seconds: across machines, as exact as their clocks. What is no
    heartbeat, though it lies there, is left out.
    """
    keys = self.kv.keys("heartbeats/")
    beats = {}
    for key, found in zip(keys, self.kv.get_many(keys), strict=True):
      name = key.removeprefix("heartbeats/")
      beat = found.value and notes.heartbeat(found.value)
      if beat and notes.is_writer(name):
        beat["age"] = time.time() - beat["time"]
        if fresh is None or beat["age"] <= fresh:
          beats[name] = beat
    return beats

  def reconfigured(self) -> bool:
    """Whether the run has another config, or is another, than when this was opened."""
    record = _run_record(self.kv, self.kv.get("run"))
    return record is None or (record["run"], record["config"]) != (
      self.run,
      self.config,
    )

  def stop(self, reason: str) -> None:
    """Asks every sampler to end, unless another learner has opened the run since."""
    if self._incarnation_now() == self.incarnation:
      value = {"reason": reason, "incarnation": self.incarnation}
      self.kv.put("stop", json.dumps(value).encode())

  def stopped(self) -> str | None:
    """Why the samplers are to end; None while they are not."""
    found = self.kv.get("stop").value
    if found is None:
      return None
    # An incarnation that ended late has no say in the next.
    by = notes.note(self.url, "stop", found, "incarnation", int)
    late = by < (self._incarnation_now() or 0)
    return None if late else notes.note(self.url, "stop", found, "reason", str)

  def _incarnation_now(self) -> int | None:
    """How often a learner has opened this run by now; None if it is not there."""
    record = _run_record(self.kv, self.kv.get("run"))
    if record is None or record["run"] != self.run:
      return None
    return record["incarnation"]


def rollout_key(writer: str, seq: int) -> str:
  return f"rollouts/{check_writer(writer)}/{seq:010d}"


def quarantine_key(writer: str, seq: int) -> str:
  return f"quarantine/{check_writer(writer)}/{seq:010d}"


def _run_record(kv: KeyValue, found: Read) -> dict[str, Any] | None:
  """What `found`, read from the key `run`, says; None if there is no run."""
  if found.value is None:
    return None
  try:
    record = json.loads(found.value)
    schema = record["schema"]
  except (ValueError, KeyError, TypeError) as error:
    raise WrongStoreSchemaError(
      f"store {kv.url}: its `run` is not a run record of tis_jax"
    ) from error
  if schema != STORE_SCHEMA:
    raise WrongStoreSchemaError(
      f"store {kv.url} has schema {schema}, this version of tis_jax reads "
      f"{STORE_SCHEMA}; use another URL, or the version that wrote it"
    )
  return record


def _check_run(kv: KeyValue, record, run: str | None):
  if run is not None and record["run"] != run:
    raise WrongRunError(
      f"store {kv.url} belongs to run {record['run']!r}, not {run!r}; "
      "use another URL, or delete it"
    )


def _enter(kv: KeyValue, run: str | None, config):
  """Begins the run, or its next incarnation; returns its record."""

  def entered(found: Read) -> bytes:
    record: dict[str, Any] | None = _run_record(kv, found)
    if record is None:
      record = {
        "run": run or secrets.token_hex(6),
        "schema": STORE_SCHEMA,
        "incarnation": 0,
        "config": {},
        "created": time.time(),
      }
    elif run is None:
      raise WrongRunError(
        f"store {kv.url} holds run {record['run']!r} already; name it to go on with "
        "it, or use another URL"
      )
    _check_run(kv, record, run)
    record["incarnation"] += 1
    if config is not None:
      record["config"] = dict(config)
    return json.dumps(record).encode()

  return json.loads(kv.update("run", entered))
