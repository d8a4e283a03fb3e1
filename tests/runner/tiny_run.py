"""The quickstart as a run of small steps, and how far it has come."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import quickstart
from tis_jax.runner import logs

SMALL_STEPS = {
  "algorithm.micro_batches": 1,
  "eval.prompts": 8,
  "log.tensorboard": False,
  "optimizer.warmup_steps": 1,
  "sampler.group_size": 2,
  "sampler.prompts_per_record": 4,
  "train.prompts_per_step": 4,
}
"""Steps of 8 rows, wherever the run is."""


def config_with(**changes):
  """The quickstart with settings changed: `sampler__top_p=0.8`, ..."""
  config = quickstart.get_config()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in changes.items()}
  )
  return config


def tiny(folder, **changes):
  """Settings of a run of 8 rows a step, its store in `folder`."""
  return {
    **{name.replace(".", "__"): value for name, value in SMALL_STEPS.items()},
    "mesh__data": 8,
    "eval__every": 0,
    "store__url": url_of(folder),
    **changes,
  }


def small(workdir, steps, **changes):
  """A config of so many steps, a checkpoint each; `{"a.b": value}` changes it."""
  config = quickstart.get_config()
  config.update_from_flattened_dict(
    SMALL_STEPS
    | {
      "train.steps": steps,
      "optimizer.schedule": "constant",
      "mesh.data": 8,
      "eval.samples": 2,
      "eval.every": 0,
      "checkpoint.every": 1,
      "log.every": 1,
      "store.url": url_of(workdir),
    }
    | changes
  )
  return config


def url_of(workdir):
  return (workdir / "store").as_uri()


def steps_of(workdir):
  """The steps that are logged; none before there is a log."""
  if not (workdir / "metrics.jsonl").exists():
    return []
  rows = logs.read_metrics(workdir / "metrics.jsonl")
  return [row["step"] for row in rows if "loss/total" in row]
