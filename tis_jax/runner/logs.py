"""What a run tells people and files: header, progress lines, metrics.

`metrics.jsonl` is always written, one object a step. TensorBoard and Weights & Biases
are written when the config asks for them.
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import jax

from tis_jax.runner.workdir import Identity, write_whole
from tis_jax.version import __version__

Scalars = Mapping[str, float]

_EVAL = "eval/pass_at_1"


def header(config_name: str, workdir: Path, identity: Identity) -> str:
  """Versions, device and places: what one wants to know of a run a month later."""
  versions = ", ".join(
    f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax", "numpy")
  )
  where = f" ({identity.where})" if identity.where else ""
  devices = jax.devices()
  device = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
  if (count := jax.process_count()) > 1:
    device += f" in {count} processes"
  return "\n".join(
    (
      f"tis_jax {__version__}, {versions}, Python {platform.python_version()}",
      f"device   {device}, {os.cpu_count()} CPU cores, {platform.platform()}",
      f"config   {config_name} -> {workdir / 'config.json'}",
      f"store    {identity.store}{where}",
    )
  )


def say(*parts: str, sep: str = " ") -> None:
  """Prints one line at once, so that a killed run has said all it knew."""
  print(*parts, sep=sep, flush=True)


class MetricsLog:
  """Appends scalars to `metrics.jsonl` and to the other writers that were asked for.

  Args:
    workdir: where `metrics.jsonl` and TensorBoard's event files go.
    after_step: on resumption, later lines of an earlier attempt are dropped, so that a
      step appears once; -1 drops all.
    evaluates: a step whose evaluation is about to be made again, so that it is dropped.
    tensorboard: write TensorBoard events (needs tensorboardX).
    wandb_project: log to this Weights & Biases project (needs wandb); "" for none.
    run: the run's id, under which Weights & Biases goes on with it.
    config: the run's settings, shown by Weights & Biases.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    after_step: int = -1,
    evaluates: int | None = None,
    tensorboard: bool = False,
    wandb_project: str = "",
    run: str = "",
    config: Mapping | None = None,
  ):
    path = workdir / "metrics.jsonl"
    if path.exists():
      rows = [row for row in read_metrics(path) if row["step"] <= after_step]
      rows = [row for row in rows if row["step"] != evaluates or _EVAL not in row]
      write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    self._file = path.open("a")
    self._writers: list[Callable[[int, Scalars], object]] = []
    self._closers = [self._file.close]
    if tensorboard:
      self._add_tensorboard(workdir)
    if wandb_project:
      self._add_wandb(wandb_project, run, workdir, config or {})

  def write(self, step: int, scalars: Scalars) -> None:
    """Records the scalars of one step; NaN and infinities become null."""
    row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    self._file.write(json.dumps({"step": step, **row}) + "\n")
    self._file.flush()
    for writer in self._writers:
      writer(step, scalars)

  def close(self) -> None:
    for closer in self._closers:
      closer()

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _add_tensorboard(self, workdir: Path) -> None:
    writer = _require("tensorboardX", "log.tensorboard").SummaryWriter(str(workdir))
    self._writers.append(
      lambda step, scalars: [writer.add_scalar(k, v, step) for k, v in scalars.items()]
    )
    self._closers.append(writer.close)

  def _add_wandb(
    self, project: str, run_id: str, workdir: Path, config: Mapping
  ) -> None:
    run = _require("wandb", "log.wandb_project").init(
      project=project,
      id=run_id or None,
      name=workdir.name,
      dir=workdir,
      config=dict(config),
      resume="allow",
    )
    self._writers.append(lambda step, scalars: run.log(dict(scalars), step=step))
    self._closers.append(run.finish)


def read_metrics(path: Path) -> list[dict[str, float]]:
  """The rows of a `metrics.jsonl`; a last line cut short by a kill is left out."""
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


class Progress:
  """Formats a progress line with the rate since the last line and the time left."""

  def __init__(self, first_step: int, last_step: int):
    self._last_step = last_step
    self._step = first_step
    self._time = time.monotonic()

  def line(self, step: int, scalars: Scalars, tokens: float) -> str:
    """The line for `step`; `tokens` were trained since the line before."""
    now = time.monotonic()
    seconds = max(now - self._time, 1e-9)
    rate = (step - self._step) / seconds
    left = (self._last_step - step) / rate if rate else math.inf
    self._step, self._time = step, now
    values = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
    return (
      f"step {step:>{len(str(self._last_step))}}/{self._last_step}  {values}  "
      f"{rate:.2f} step/s  {tokens / seconds:,.0f} tok/s  left {duration(left)}"
    )


def duration(seconds: float) -> str:
  """Seconds as people say them.

  >>> duration(7384)
  '2h03m'
  >>> duration(75)
  '1m15s'
  """
  if not math.isfinite(seconds):
    return "?"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def table(rows: Mapping[str, object]) -> str:
  """A two-column table of names and values.

  >>> print(table({"steps": 300, "pass_at_1/final": 0.5}))
  steps            300
  pass_at_1/final  0.5
  """
  width = max(map(len, rows))
  cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in rows.values())
  return "\n".join(
    f"{name:<{width}}  {cell}" for name, cell in zip(rows, cells, strict=True)
  )


def _require(module: str, option: str):
  try:
    return __import__(module)
  except ImportError:
    sys.exit(f"{option} needs {module}: pip install 'tis_jax[log]'")
