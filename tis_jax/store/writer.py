"""A sampler's side of the store: who it is, when it may write, which params are new."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tis_jax.rollouts import Rollout, validate
from tis_jax.store.allowance import Allowance
from tis_jax.store.errors import AlreadyExistsError, ParamsGoneError
from tis_jax.store.polling import Pauses
from tis_jax.store.store import Store
from tis_jax.store.walks import delete_left, read_left, write_left
from tis_jax.store.watch import Watch

# A learner that is away for so long is not coming back for this sampler.
_PATIENCE_SECONDS = 3600.0


class Turn(NamedTuple):
  """One record that may be made now.

  Attributes:
    seq: its place in the writer's sequence.
    version: of the params to make it by.
    params: these, by name, if they are newer than those of the last turn; else None.
    last: the last record that tokens sampled by them may stand in, within the run's
      bound on staleness.
    digest: of the params of `version`, as `digest` would make it of them: the store
      has looked at every byte already.
  """

  seq: int
  version: int
  params: Mapping[str, np.ndarray] | None
  last: int
  digest: str = ""


class RolloutWriter:
  """Writes rollouts for a run, whatever engine makes them; needs no jax.

  A context manager. Entering claims the name and goes on where its last holder ended;
  inside, a thread says that the writer lives, and ends the process if it does not come
  to its own end when the run has.

  Attributes:
    reason: why the writer must end; None while it need not.
    incarnation: how often the name has been claimed, from 1.
    left: draws of its walk over the prompts that it had begun when its last holder
      ended, and not handed over.
    idle: the share of the time from turn to turn in which the last turn was waited for.
    health: numbers by name that the learner shows and logs, set by whoever makes the
      records: what the engine says of the last one (`NativeEngine.health`), and, as
      `reward_CAUSE`, how many responses have no reward so far. Heartbeats carry it.

  Args:
    store: from `Store.open(url)`.
    name: of this writer; one at a time may have it.
    capacity: records that all writers of the run may be ahead of the learner; by
      default what the learner has told its samplers (`store.config`).
    writers: how many share it at least.
    parent: process id; end when it is no longer the parent's.

  Example:
    >>> store = Store.open("memory://doctest-writer", create=True)
    >>> _ = store.publish(0, {"w": np.ones(2, np.float32)}, {"cursor": {}})
    >>> with RolloutWriter(store, "mine", capacity=4) as writer:
    ...   for turn in writer.turns():
    ...     print(turn)  # here: if turn.params is not None, load them; then write
    ...     break
    Turn(seq=0, version=0, params={'w': array([1., 1.], dtype=float32)}, last=3,
         digest='...')
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
    self.idle = 0.0
    self._store, self._name = store, name
    capacity = store.config["capacity"] if capacity is None else capacity
    self._allowance = Allowance(store, name, capacity, writers)
    self._watch = Watch(store, name, self.incarnation, store.next_seq(name), parent)
    self.left = read_left(store, name, self._watch.seq)
    self._pauses = Pauses(store.url)
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
  def seq(self) -> int:
    """The next record's place in the sequence."""
    return self._watch.seq

  def turns(self) -> Iterator[Turn]:
    """Waits until a record may be made, gives it out, and again, until the run ends."""
    watch, heard = self._watch, time.monotonic()
    turned, waited = heard, 0.0
    while self._goes_on():
      # Permitted by the very publication whose params make it: a learner that goes on
      # from further back publishes a newer version, and takes progress back with it.
      manifest = self._store.latest()
      new = manifest is not None and manifest.version != watch.version
      if new:
        heard = time.monotonic()
      last = -1 if manifest is None else self._allowance.last(manifest)
      if manifest is not None and watch.seq <= last:
        params = None
        if new:
          try:
            params = self._store.read_params(manifest)
          except ParamsGoneError:
            continue
          watch.version, self._digest = manifest.version, manifest.digest
        watch.state = "generating"
        now = time.monotonic()
        self.idle = waited / max(now - turned, 1e-9)
        turned, waited = now, 0.0
        yield Turn(watch.seq, manifest.version, params, last, self._digest)
        self._pauses.restart()
        continue
      watch.state = "waiting for the learner"
      if time.monotonic() - heard > _PATIENCE_SECONDS:
        watch.reason = f"no new params for {_PATIENCE_SECONDS:.0f} s"
      began = time.monotonic()
      self._pauses.wait(lambda: watch.reason)
      waited += time.monotonic() - began

  def newer(self) -> tuple[Mapping[str, np.ndarray], int, str] | None:
    """Params published since this turn's, inside it, their version and their digest.

    For engines that take new params between tokens; a record's header then has the
    newest version that made a token of it, and that version's digest. Looks at the
    store no more often than `turns` does, so it may be called at every step.

    Returns:
      (params by name, version, digest), each version once; None while there are none.
    """
    if time.monotonic() - self._looked < self._pauses.first:
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

  def write(self, rollout: Rollout, left: Sequence[int] | None = None) -> None:
    """Hands a record to the learner, as this turn's.

    Args:
      rollout: whose prompts are the writer's next ones.
      left: draws that it has begun and leaves for later records; of a writer that
        hands over what is finished, and not the next ones (`tis_jax.store.walks`).

    Raises:
      BadRolloutError: the learner would set it aside; says why.
      AlreadyExistsError: another writer has the name, or has had it.
    """
    validate(rollout)
    if left is not None:
      if not self._store.holds(self._name, self.incarnation):
        raise AlreadyExistsError(f"another writer has taken the name {self._name!r}")
      write_left(self._store, self._name, self._watch.seq + 1, left)
    self._store.put_rollout(self._name, self._watch.seq, rollout)
    self._watch.seq += 1
    if left is not None:
      delete_left(self._store, self._name, self._watch.seq)

  def _goes_on(self) -> bool:
    self._watch.reason = self._watch.reason or self._store.stopped()
    return self._watch.reason is None
