"""What a run holds between two steps, and how it takes one."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tis_jax import models
from tis_jax.learner import Batch, save_batch
from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.runner import logs
from tis_jax.runner.config import ConfigError
from tis_jax.runner.setup import build, identify, sampler_settings
from tis_jax.runner.stream import BatchStream, needed_from
from tis_jax.runner.summary import summarize
from tis_jax.sampler import Fleet
from tis_jax.store import RolloutReader, Store

_FRESH: dict[str, Any] = {
  "version": -1,
  "position": None,
  "seconds": 0.0,
  "base": None,
}
_SHOWN = ("reward/mean", "mismatch/k3", "weight/ess", "staleness/mean")


class BadUpdateError(FloatingPointError):
  """A loss or a gradient was not finite; the state is that from before."""


class Run:
  """The learner's side of an experiment, with the samplers it starts.

  A context manager: leaving it stops the samplers and closes the logs.

  Attributes:
    step: learner steps made.
    version: number of the params published last.

  Args:
    config: of the layout of `configs/default.py`.
    workdir: an existing folder; the checkpoint of an earlier attempt is gone on with.
    config_name: for the header.
  """

  def __init__(self, config: ConfigDict, workdir: Path, config_name: str):
    self._config, self._workdir = config, workdir
    self._began = time.monotonic()
    identity = identify(config, workdir)
    where = f" ({identity.where})" if identity.where else ""
    logs.say(logs.header(config_name, workdir, identity.store + where))
    try:
      self._parts = parts = build(config)
      settings = dataclasses.asdict(sampler_settings(config))
    except ValueError as error:
      raise ConfigError(str(error)) from error
    logs.say(f"model    {config.model.source}, {parts.decoder.num_parameters:,} params")
    logs.say(f"task     {config.data.task}, {parts.prompts:,} prompts")

    self._checkpoints = Checkpoints(
      workdir / "checkpoints", {"run": identity.run}, keep=config.checkpoint.keep
    )
    restored = self._checkpoints.restore(parts.abstract_state())
    self._state, self._info = restored or (parts.fresh_state(config.seed), _FRESH)
    self.step = int(self._state.step)
    if restored:
      logs.say(f"resumed  at step {self.step}")

    self._store = Store.open(
      identity.store,
      identity.run,
      create=True,
      config=settings,
    )
    self._stream = self._open_stream(self._info["position"])
    self.version = self._store.next_version(self._info["version"] + 1) - 1
    self._publish()
    self._fleet = Fleet(
      identity.store, config.sampler.count, workdir / "samplers", on_event=logs.say
    )
    self._log = logs.MetricsLog(
      workdir,
      after_step=self.step,
      tensorboard=config.log.tensorboard,
      wandb_project=config.log.wandb_project,
      run=identity.run,
      config=config.to_dict(),
    )
    self._progress = logs.Progress(self.step, config.train.steps)
    self._tokens = 0.0
    self._histogram = _load_histogram(workdir / "weight_histogram.npz")
    self._deleted_below = None

  def __enter__(self) -> "Run":
    self._fleet.start()
    return self

  def __exit__(self, *_) -> None:
    self._store.stop("the learner has ended")
    self._fleet.stop()
    self._checkpoints.close()
    self._log.close()

  @property
  def seconds(self) -> float:
    """Wall time of this and earlier attempts."""
    return self._info["seconds"] + time.monotonic() - self._began

  def evaluate(self) -> dict[str, float]:
    """Held-out accuracy of the learner's fp32 policy, logged at this step."""
    accuracy = self._parts.evaluate(self._parts.graph, self._state.params)
    scalars = {f"eval/{name}": value for name, value in accuracy._asdict().items()}
    self._log.write(self.step, scalars)
    logs.say(
      f"step {self.step}: held-out pass@1 {accuracy.pass_at_1:.3f} "
      f"± {accuracy.pass_at_1_stderr:.3f}"
    )
    return scalars

  def evaluate_base(self) -> None:
    """Evaluates what the run starts from, unless an earlier attempt did."""
    if self._info["base"] is None:
      self._info = self._info | {"base": self.evaluate()}

  def advance(self, interrupted: Callable[[], None]) -> None:
    """One learner step: batch, update, publication, logs.

    Args:
      interrupted: raises if the run is to stop; called while waiting for rollouts.

    Raises:
      BadUpdateError: the loss was not finite; the batch is saved in the workdir.
    """
    started = time.monotonic()

    def while_waiting():
      interrupted()
      self._fleet.check()

    batch = self._stream.next(self.version, while_waiting)
    waited = time.monotonic()
    if self.step + 1 == self._config.train.steps:
      self._keep_for_notebooks(batch)
    self._state, found = self._parts.update(
      self._state, batch, np.int32(self.version), *self._parts.reference
    )
    found = jax.device_get(found)
    histogram = found.pop("weight_histogram")
    scalars = {name: float(value) for name, value in found.items()}
    if scalars["update/skipped"]:
      self._refuse(batch, scalars)
    updated = time.monotonic()
    self.step += 1
    self._histogram = _add_histograms(self._histogram, histogram)
    self._publish()
    scalars |= {
      "time/wait": waited - started,
      "time/update": updated - waited,
      "time/publish": time.monotonic() - updated,
      "rollouts/quarantined": float(self._reader.quarantined.total()),
    }
    self._after(scalars)

  def save(self) -> None:
    """Checkpoints the state and where the run is; deletes what no checkpoint needs."""
    np.savez(self._workdir / "weight_histogram.npz", **self._histogram)
    self._checkpoints.save(
      self._state,
      self._info
      | {
        "version": self.version,
        "position": self._stream.position,
        "seconds": self.seconds,
      },
    )

  def finish(self) -> dict[str, Any]:
    """Saves, evaluates, and sums the run up."""
    final = self.evaluate()
    self.save()
    self._checkpoints.wait()
    self._delete_what_is_done()
    self._store.delete_params(keep=1)
    rows = self._stream.rows
    counts = {
      "rollouts/trained": rows["trained"],
      "rollouts/filtered": rows["filtered"],
      "rollouts/held": self._stream.held_rows,
      "rollouts/lost": self._stream.lost_rows,
      "rollouts/quarantined": self._reader.quarantined.total(),
    }
    return summarize(self._workdir, self._info["base"], final, counts, self.seconds)

  def _after(self, scalars: Mapping[str, float]) -> None:
    """What follows a step: logs, evaluation, checkpoint."""
    config = self._config
    self._log.write(self.step, scalars)
    self._tokens += scalars["tokens/count"]
    last = self.step == config.train.steps
    if self.step % config.log.every == 0 or last:
      shown = {name: scalars[name] for name in _SHOWN}
      logs.say(self._progress.line(self.step, shown, self._tokens))
      self._tokens = 0.0
    if config.eval.every and self.step % config.eval.every == 0 and not last:
      self.evaluate()
    if self.step % config.checkpoint.every == 0:
      self.save()
    self._delete_what_is_done()

  def _open_stream(self, position) -> BatchStream:
    config = self._config
    rows = config.sampler.prompts_per_record * config.sampler.group_size
    self._reader = RolloutReader(
      self._store,
      position and position["cursor"],
      shape=(rows, config.data.max_prompt_tokens, config.sampler.max_new_tokens),
      vocab_size=self._parts.decoder.vocab_size,
      on_quarantine=logs.say,
    )
    return BatchStream(
      self._reader,
      groups=config.train.prompts_per_step,
      filter_groups=config.train.dynamic_sampling,
      position=position,
    )

  def _publish(self) -> None:
    """Gives the samplers the params, and says which rollouts have been taken."""
    params = self._state.params
    if self._config.sampler.precision == "bfloat16":
      params = models.cast(params, "bfloat16")
    flat = jax.device_get(models.flatten(params))
    self.version += 1
    info = {"step": self.step, "cursor": self._reader.cursor}
    self._store.publish(self.version, flat, info)
    self._store.delete_params(keep=self._config.store.keep)

  def _delete_what_is_done(self) -> None:
    committed = self._checkpoints.committed
    if committed is not None and committed["position"] != self._deleted_below:
      self._store.delete_rollouts(needed_from(committed["position"]))
      self._deleted_below = committed["position"]

  def _keep_for_notebooks(self, batch: Batch) -> None:
    old_logp = self._parts.score(self._state.params, batch).logp
    path = self._workdir / "batch.npz"
    save_batch(path, batch, old_logp=old_logp, learner_version=self.version)

  def _refuse(self, batch: Batch, scalars: Mapping[str, float]):
    path = self._workdir / f"bad_batch_{self.step:06d}.npz"
    save_batch(path, batch, learner_version=self.version)
    self._log.write(self.step, scalars)
    self.save()
    raise BadUpdateError(
      f"step {self.step}: loss {scalars['loss/total']}, gradient norm "
      f"{scalars['optimizer/grad_norm']}. The update was not made, the state from "
      f"before it is saved, and the batch is in {path}"
    )


def _add_histograms(total, new):
  if not total:
    return dict(new)
  return {
    name: total[name] if name == "edges" else total[name] + new[name] for name in new
  }


def _load_histogram(path: Path) -> dict[str, Any]:
  return dict(np.load(path)) if path.exists() else {}
