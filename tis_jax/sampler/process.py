"""The sampler process: newest params in, rollout records out."""

import time
from urllib.parse import urlsplit

import jax

from tis_jax.sampler.allowance import Allowance
from tis_jax.sampler.settings import Assignment
from tis_jax.sampler.watch import RECONFIGURED, Watch
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import ParamsGoneError, Store

# A look at a local store takes microseconds, at an object store money.
_POLL_SECONDS = {"file": 0.01, "memory": 0.01}
_REMOTE_POLL_SECONDS = 0.5
# A learner that is away for so long is not coming back for this sampler.
_PATIENCE_SECONDS = 3600.0


def run_sampler(url: str, name: str, parent: int | None = None) -> str:
  """Generates rollouts for the run in a store until it stops; returns why.

  Everything but the name comes from the store. A sampler that is started again under
  its name goes on where the last one ended: with the next record and the next prompts,
  and with noise of its own. When the learner starts again with another config, so does
  the sampler.

  Args:
    url: of the store.
    name: of this writer; one process at a time may have it.
    parent: process id; end when it is no longer the parent's.

  Raises:
    StoreError: the store cannot be reached, or holds no run.
  """
  reason = RECONFIGURED
  while reason == RECONFIGURED:
    reason = _serve(Store.open(url), name, parent)
    _say(f"{name} ended: {reason}")
  return reason


def _serve(store: Store, name: str, parent: int | None) -> str:
  assignment = Assignment.from_json(store.config)
  incarnation = store.claim(name)
  seq = store.next_seq(name)
  allowance = Allowance(store, name, assignment.capacity, assignment.writers)
  poll_seconds = _POLL_SECONDS.get(urlsplit(store.url).scheme, _REMOTE_POLL_SECONDS)
  with Watch(store, name, incarnation, seq, parent) as watch:
    engine, environment = build(assignment)
    worker = Worker(assignment, name, incarnation, engine, environment)
    precision = assignment.sampler.precision
    _say(f"{name} begins at record {seq}, {precision}, {jax.devices()[0]}")
    heard = time.monotonic()
    while (reason := watch.reason or store.stopped()) is None:
      # Asked before the params are looked for, so that a record which the learner's
      # progress permits is made by params that are at least as new as that progress.
      permitted = allowance.permits(seq)
      manifest = store.latest(if_newer_than=watch.version)
      if manifest is not None:
        heard = time.monotonic()
        try:
          engine.update(store.read_params(manifest), manifest.version)
        except ParamsGoneError:
          continue
        watch.version = manifest.version
      if watch.version is None or not permitted:
        watch.state = "waiting for the learner"
        if time.monotonic() - heard > _PATIENCE_SECONDS:
          return f"no new params for {_PATIENCE_SECONDS:.0f} s"
        time.sleep(poll_seconds)
        continue
      watch.state = "generating"
      store.put_rollout(name, seq, worker.rollout(seq))
      seq += 1
      watch.seq = seq
  return reason


def _say(text: str) -> None:
  print(text, flush=True)
