"""What a run holds between two steps, and how it takes one.

A step is dispatched before the metrics of the one before it are read, and two threads
work beside it, so that reading, logging and writing happen while the device computes:

  advance n:  take batch n  dispatch n  report n-1  wait for n  evaluate, checkpoint
  publisher:  params n-1 to the host, encoded, written          params n ...
  reader:     batch n+1 found, decoded, put on the device

What must know how step n went (an evaluation, a checkpoint, the end) settles it first.
An update that is not finite changes nothing, and neither does the one that was
dispatched behind it (`TrainState.healthy`), so the run stops in the state from before.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tis_jax.engines.native.health import PHASES
from tis_jax.learner import Batch, Checkpoints, save_batch
from tis_jax.runner import logs
from tis_jax.runner.guard import WEIGHTY, Guard
from tis_jax.runner.health import sampler_health
from tis_jax.runner.lineage import Lineage
from tis_jax.runner.settings import Settings
from tis_jax.runner.stream import BatchStream, late_rows, needed_from
from tis_jax.runner.summary import summarize
from tis_jax.runner.tighten import caps_of
from tis_jax.runner.work import Work
from tis_jax.sampler import Fleet
from tis_jax.store import Store, StoreError
from tis_jax.tasks import CAUSES

_SHOWN = (
  "reward/mean",
  "mismatch/k3",
  "weight/ess",
  "staleness/mean",
  *(f"rollouts/reward_{cause}" for cause in CAUSES),
  "sampler/tokens_per_s",
  "sampler/occupancy",
  "sampler/cache_use",
  "sampler/queue",
  *(f"sampler/seconds/{phase}" for phase in PHASES),
)
# A sampler that has said nothing for so long is gone, and its numbers with it.
_FRESH_SECONDS = 60.0


class BadUpdateError(FloatingPointError):
  """A loss or a gradient was not finite; the state is that from before."""


class GuardError(RuntimeError):
  """A metric was out of range, and the config says to stop; the state is saved."""


@dataclasses.dataclass
class _Step:
  """A step that was dispatched, and whose metrics nobody has read.

  Attributes:
    number: of the step, from 1.
    batch: what it trained on, on the host.
    position: of the stream, behind its batch.
    metrics: on the device.
    seconds: what its phases took.
  """

  number: int
  batch: Batch
  position: Mapping[str, Any]
  metrics: dict[str, Any]
  seconds: dict[str, float]


class Run:
  """The learner's side of an experiment.

  Attributes:
    step: learner steps dispatched.
    version: number of the params published last, or being published.

  Args:
    settings: of the run.
    work: the state, and what is done with it.
    workdir: where everything of the run goes.
    info: what the checkpoint of the state says beside it, see `FRESH`.
    store: of the run.
    stream: of its batches.
    lineage: which step each version is of.
    fleet: of samplers on this machine.
    checkpoints: of the run.
    log: of its metrics.
  """

  def __init__(
    self,
    settings: Settings,
    work: Work,
    workdir: Path,
    info: Mapping[str, Any],
    *,
    store: Store,
    stream: BatchStream,
    lineage: Lineage,
    fleet: Fleet,
    checkpoints: Checkpoints,
    log: logs.MetricsLog,
  ):
    self._settings, self._work, self._workdir = settings, work, workdir
    self._info = info
    self._store, self._stream, self._fleet = store, stream, fleet
    self._lineage = lineage
    self._ahead, self._publisher = work.ahead, work.publisher
    self._checkpoints, self._log = checkpoints, log
    self._began = time.monotonic()
    self.step = int(work.state.step)
    self.version = self._info["version"]
    self._unread: _Step | None = None
    self._progress = logs.Progress(self.step, settings.train.steps)
    self._tokens = 0.0
    self._histogram = self._info["histogram"]
    self._deleted_below = None
    self._guard = Guard(settings.guard, settings.sampler.precision)

  @property
  def seconds(self) -> float:
    """Wall time of this and earlier attempts."""
    return self._info["seconds"] + time.monotonic() - self._began

  def begin(self) -> None:
    """Gives the samplers params to begin with, and evaluates what the run starts from.

    A version is never used twice, so an attempt that goes on publishes under the next.
    """
    version = self._store.next_version(self.version + 1)
    self._lineage.begins(version, self.step)
    self.publish()
    self._read_ahead()
    if self._info["base"] is None:
      self._info = {**self._info, "base": self.evaluate()}

  def advance(self, interrupted: Callable[[], None]) -> None:
    """One learner step.

    Args:
      interrupted: raises if the run is to stop; asked before the step, and while
        waiting for rollouts.

    Raises:
      BadUpdateError: a loss was not finite; the batch is saved in the workdir.
      GuardError: a metric was out of range, and that ends the run.
    """

    def may_go_on():
      interrupted()
      self._fleet.check()
      self._publisher.check()

    may_go_on()
    started = time.monotonic()
    batch = self._work.take(self.step, may_go_on)
    waited = time.monotonic()
    step = self._dispatch(batch)
    self._read_ahead()
    self.report()
    self._unread = step
    jax.block_until_ready(self._work.state.params)
    updated = time.monotonic()
    # Waits for the publication before, if an update took less than that.
    self.publish()
    step.seconds = {
      "time/wait": waited - started + time.monotonic() - updated,
      "time/update": updated - waited,
      "time/publish": self._publisher.seconds,
    }
    evaluate, checkpoint = self._settings.eval.every, self._settings.checkpoint.every
    last = self.step == self._settings.train.steps
    if evaluate and self.step % evaluate == 0 and not last:
      self.evaluate()
    if self.step % checkpoint == 0:
      self.save()
    self._delete_what_is_done()

  def report(self) -> None:
    """Reads and logs the metrics of the step that was dispatched last, if nobody has.

    Raises:
      BadUpdateError: its loss was not finite.
      GuardError: a metric was out of range, and that ends the run.
    """
    if self._unread is None:
      return
    step, self._unread = self._unread, None
    found = jax.device_get(step.metrics)
    histogram = found.pop("weight_histogram")
    scalars = {name: float(value) for name, value in found.items()}
    if scalars["update/skipped"]:
      self._refuse(step, scalars)
    self._histogram = _add_histograms(self._histogram, histogram)
    quarantined = float(self._stream.quarantined.total())
    scalars |= step.seconds | {"rollouts/quarantined": quarantined}
    scalars["rollouts/lost"] = float(step.position["lost"])
    scalars |= late_rows(step.position["rows"])
    last = step.number == self._settings.train.steps
    shows = step.number % self._settings.log.every == 0 or last
    if shows:
      scalars |= self._of_samplers()
    alarms = self._guard.look(scalars)
    scalars["guard/alarms"] = len(alarms)
    self._log.write(step.number, scalars)
    self._tokens += scalars["tokens/count"]
    if shows:
      shown = {name: scalars[name] for name in _SHOWN if name in scalars}
      logs.say(self._progress.line(step.number, shown, self._tokens))
      self._tokens = 0.0
    if alarms:
      self._raise_alarms(step, alarms)

  def publish(self) -> None:
    """Starts giving the samplers the params, and says which rollouts have been taken.

    Raises:
      StoreError: what made the publication before this one fail.
    """
    self.version = self._lineage.version(self.step)
    info = {"step": self.step, "cursor": self._ahead.position["cursor"]}
    if self._work.parts.base_digest:
      info["base"] = self._work.parts.base_digest
    self._work.publish(self.version, info)

  def evaluate(self) -> dict[str, float]:
    """Held-out accuracy of the learner's fp32 policy, logged at this step."""
    self.report()
    accuracy = self._work.parts.evaluate(self._work.params_here())
    scalars = {f"eval/{name}": value for name, value in accuracy._asdict().items()}
    self._log.write(self.step, scalars)
    logs.say(
      f"step {self.step}: held-out pass@1 {accuracy.pass_at_1:.3f} "
      f"± {accuracy.pass_at_1_stderr:.3f}"
      + (
        f", {accuracy.unrewarded} answers without a reward" * bool(accuracy.unrewarded)
      )
    )
    return scalars

  def save(self) -> None:
    """Checkpoints the state and where the run is."""
    self.report()
    self._save(self._ahead.position)

  def finish(self) -> dict[str, Any]:
    """Saves, evaluates, and sums the run up."""
    final = self.evaluate()
    self.save()
    self._checkpoints.wait()
    self._publisher.wait()
    self._delete_what_is_done()
    self._store.delete_params(keep=1)
    rows, said = self._stream.rows, sampler_health(self._store.heartbeats())
    failed = {name: n for name, n in said.items() if name.startswith("rollouts/")}
    counts = {
      "rollouts/trained": rows["trained"],
      "rollouts/filtered": rows["filtered"],
      "rollouts/held": self._stream.held_rows,
      "rollouts/lost": self._stream.lost_rows,
      "rollouts/quarantined": self._stream.quarantined.total(),
      **{name: int(count) for name, count in (failed | late_rows(rows)).items()},
    }
    return summarize(self._workdir, self._info["base"], final, counts, self.seconds)

  def _of_samplers(self) -> dict[str, float]:
    """What the samplers say of themselves; a look at an object store costs money."""
    try:
      return sampler_health(self._store.heartbeats(), _FRESH_SECONDS)
    except StoreError:
      return {}  # The step's own numbers are not lost; what needs the store says why.

  def _read_ahead(self) -> None:
    """Has the next step's batch read, if there is to be one."""
    if self.step < self._settings.train.steps:
      self._work.read(self.step, self._lineage.version(self.step))

  def _dispatch(self, batch: Batch) -> _Step:
    """Starts the update on the batch that was taken; does not wait for it."""
    if self.step + 1 == self._settings.train.steps:
      self._write_batch(self._workdir / "batch.npz", self.step)
    metrics = self._work.update(self.step)
    self.step += 1
    return _Step(self.step, batch, self._ahead.position, metrics, {})

  def _save(self, position: Mapping[str, Any], heals: bool = False) -> None:
    path = self._workdir / "weight_histogram.npz"
    partial = path.with_name(f".{path.name}")
    np.savez(partial, **self._histogram)
    partial.replace(path)  # Whole, or as it was before.
    where = {
      "version": self.version,
      "position": position,
      "seconds": self.seconds,
      "histogram": {
        name: np.asarray(x).tolist() for name, x in self._histogram.items()
      },
    }
    self._work.save({**self._info, **where}, heals)

  def _delete_what_is_done(self) -> None:
    """Deletes the rollouts that no checkpoint needs."""
    committed = self._checkpoints.committed
    if committed is not None and committed["position"] != self._deleted_below:
      self._store.delete_rollouts(needed_from(committed["position"]))
      self._deleted_below = committed["position"]

  def _write_batch(self, path: Path, step: int) -> None:
    """The batch of a step with both sides' log-probs, the learner's by now's params.

    Versions in it are steps, the learner's too.
    """
    batch, old_logp = self._work.scored(step)
    save_batch(path, batch, old_logp=old_logp, learner_version=self.step)

  def _raise_alarms(self, step: _Step, alarms: Mapping[str, str]) -> None:
    """Says the alarms of a step, and does what the config wants done."""
    for alarm in alarms.values():
      logs.say(f"alarm at step {step.number}: {alarm}")
    guard = self._settings.guard
    if guard.action not in ("save", "tighten", "stop"):
      return
    path = self._workdir / f"guard_{step.number:06d}.npz"
    if len(list(self._workdir.glob("guard_*.npz"))) < guard.max_saved:
      self._write_batch(path, step.number - 1)
      logs.say(f"its batch is in {path}")
    if guard.action == "tighten" and WEIGHTY.intersection(alarms):
      self._tighten()
    if guard.action == "stop":
      self._save(self._ahead.position)
      raise GuardError(
        f"step {step.number}: {'; '.join(alarms.values())}. The run has stopped, as "
        "guard.action asks, and its state is saved; the same command goes on with "
        "--config.guard.action=warn"
      )

  def _tighten(self) -> None:
    """Compiles the update with nearer caps, from the next dispatch on."""
    times = self._info["tightened"] + 1
    before = self._work.parts.learner.algorithm.correct
    self._work.tighten(times)
    correct = self._work.parts.learner.algorithm.correct
    if correct == before:
      logs.say(f"the correction's cap is as near to 1 as it gets: {caps_of(correct)}")
      return
    self._info = {**self._info, "tightened": times}
    logs.say(f"tightened from step {self.step + 1} on: {caps_of(correct)}")

  def _refuse(self, step: _Step, scalars: Mapping[str, float]) -> None:
    """Stops the run in the state from before a step, with the batch that did it."""
    path = self._workdir / f"bad_batch_{step.number - 1:06d}.npz"
    save_batch(path, step.batch, learner_version=step.number - 1)
    self._log.write(step.number - 1, scalars)
    # A step that was dispatched behind it has changed nothing: its rollouts are taken
    # again. The batch itself is not.
    self._save(step.position, heals=True)
    raise BadUpdateError(
      f"step {step.number - 1}: loss {scalars['loss/total']}, gradient norm "
      f"{scalars['optimizer/grad_norm']}. The update was not made, the state from "
      f"before it is saved, and the batch is in {path}"
    )


def _add_histograms(total, new):
  if not total:
    return dict(new)
  return {
    name: total[name] if name == "edges" else np.add(total[name], new[name])
    for name in new
  }
