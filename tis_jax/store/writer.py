"""A sampler's side of the store: who it is, when it may write, which params are new."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from tis_jax.rollouts import Rollout, validate
from tis_jax.store.allowance import Allowance
from tis_jax.store.errors import ParamsGoneError
from tis_jax.store.store import Store
from tis_jax.store.watch import Watch

# A look at a local store takes microseconds, at an object store money.
_POLL_SECONDS = {"file": 0.01, "memory": 0.01}
_REMOTE_POLL_SECONDS = 0.5
# A learner that is away for so long is not coming back for this sampler.
_PATIENCE_SECONDS = 3600.0


class Turn(NamedTuple):
  """One record that may be made now.

  Attributes:
    seq: its place in the writer's sequence.
    version: of the params to make it by.
    params: these, by name, if they are newer than those of the last turn; else None.
    digest: of the params of `version`, as `digest` would make it of them: the store
      has looked at every byte already.
  """

  seq: int
  version: int
  params: Mapping[str, np.ndarray] | None
  digest: str = ""


class RolloutWriter:
  """Writes rollouts for a run, whatever engine makes them; needs no jax.

  A context manager. Entering claims the name and goes on where its last holder ended;
  inside, a thread says that the writer lives, and ends the process if it does not come
  to its own end when the run has.

  Attributes:
    reason: why the writer must end; None while it need not.
    incarnation: how often the name has been claimed, from 1.
    health: numbers by name that the learner shows and logs; set by whoever makes the
      records (`NativeEngine.health`).
    unrewarded: to be kept current by whoever writes, where rewards may fail: {cause:
      responses without a reward}; heartbeats carry it.

  Args:
    store: from `Store.open(url)`.
    name: of this writer; one at a time may have it.
    capacity: records that all writers of the run may be ahead of the learner; by
      default what the learner has told its samplers (`store.config`).
    writers: how many share it at least.
    parent: process id; end when it is no longer the parent's.

  Example:
    >>> store = Store.open("memory://doctest-writer", create=True)
    >>> _ = store.publish(0, {"w": np.zeros(2, np.float32)}, {"cursor": {}})
    >>> with RolloutWriter(store, "mine", capacity=4) as writer:
    ...   for turn in writer.turns():
    ...     print(turn)  # here: if turn.params is not None, load them; then write
    ...     break
    Turn(seq=0, version=0, params={'w': array([0., 0.], dtype=float32)},
         digest='48b114933f8ad5a0')
  """

  def __init__(
    self,
    store: Store,
    name: str,
    *,
    capacity: int | None = None,
    writers: int = 1,
    parent: int | None = None,
  ):
    self.incarnation = store.claim(name)
    self._store, self._name = store, name
    capacity = store.config["capacity"] if capacity is None else capacity
    self._allowance = Allowance(store, name, capacity, writers)
    self._watch = Watch(store, name, self.incarnation, store.next_seq(name), parent)
    scheme = urlsplit(store.url).scheme
    self._poll_seconds = _POLL_SECONDS.get(scheme, _REMOTE_POLL_SECONDS)
    self._looked, self._digest = -math.inf, ""

  def __enter__(self) -> "RolloutWriter":
    self._watch.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._watch.__exit__(*error)

  @property
  def reason(self) -> str | None:
    return self._watch.reason

  @property
  def health(self) -> Mapping[str, float]:
    return self._watch.health

  @health.setter
  def health(self, numbers: Mapping[str, float]) -> None:
    self._watch.health = dict(numbers)

  @property
  def unrewarded(self) -> Mapping[str, int]:
    return self._watch.unrewarded

  @unrewarded.setter
  def unrewarded(self, counts: Mapping[str, int]) -> None:
    self._watch.unrewarded = counts

  @property
  def seq(self) -> int:
    """The next record's place in the sequence."""
    return self._watch.seq

  def turns(self) -> Iterator[Turn]:
    """Waits until a record may be made, gives it out, and again, until the run ends."""
    watch, heard = self._watch, time.monotonic()
    while self._goes_on():
      # Asked before the params are looked for, so that a record which the learner's
      # progress permits is made by params that are at least as new as that progress.
      permitted = self._allowance.permits(watch.seq)
      manifest = self._store.latest(if_newer_than=watch.version)
      if manifest is not None:
        heard = time.monotonic()
      if permitted and (manifest is not None or watch.version is not None):
        params = None
        if manifest is not None:
          try:
            params = self._store.read_params(manifest)
          except ParamsGoneError:
            continue
          watch.version, self._digest = manifest.version, manifest.digest
        watch.state = "generating"
        assert watch.version is not None
        yield Turn(watch.seq, watch.version, params, self._digest)
        continue
      watch.state = "waiting for the learner"
      if time.monotonic() - heard > _PATIENCE_SECONDS:
        watch.reason = f"no new params for {_PATIENCE_SECONDS:.0f} s"
      time.sleep(self._poll_seconds)

  def newer(self) -> tuple[Mapping[str, np.ndarray], int, str] | None:
    """Params published since this turn's, inside it, their version and their digest.

    For engines that take new params between tokens; a record's header then has the
    newest version that made a token of it, and that version's digest. Looks at the
    store no more often than `turns` does, so it may be called at every step.

    Returns:
      (params by name, version, digest), each version once; None while there are none.
    """
    if time.monotonic() - self._looked < self._poll_seconds:
      return None
    self._looked = time.monotonic()
    manifest = self._store.latest(if_newer_than=self._watch.version)
    if manifest is None:
      return None
    try:
      params = self._store.read_params(manifest)
    except ParamsGoneError:
      return None
    self._watch.version, self._digest = manifest.version, manifest.digest
    return params, manifest.version, manifest.digest

  def write(self, rollout: Rollout) -> None:
    """Hands a record to the learner, as this turn's.

    Raises:
      BadRolloutError: the learner would set it aside; says why.
      AlreadyExistsError: another writer has the name.
    """
    validate(rollout)
    self._store.put_rollout(self._name, self._watch.seq, rollout)
    self._watch.seq += 1

  def _goes_on(self) -> bool:
    self._watch.reason = self._watch.reason or self._store.stopped()
    return self._watch.reason is None
