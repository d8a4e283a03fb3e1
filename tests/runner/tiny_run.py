"""The quickstart as a run of a few steps on eight devices."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import quickstart
from tis_jax.runner import logs


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
    "algorithm__micro_batches": 1,
    "sampler__prompts_per_record": 4,
    "sampler__group_size": 2,
    "train__prompts_per_step": 4,
    "optimizer__warmup_steps": 1,
    "mesh__data": 8,
    "eval__prompts": 8,
    "eval__every": 0,
    "store__url": (folder / "store").as_uri(),
    "log__tensorboard": False,
    **changes,
  }


def small(workdir, steps, **changes):
  """A config of so many steps, a checkpoint each; `{"a.b": value}` changes it."""
  config = quickstart.get_config()
  config.update_from_flattened_dict(
    {
      "sampler.prompts_per_record": 4,
      "sampler.group_size": 2,
      "train.prompts_per_step": 4,
      "algorithm.micro_batches": 1,
      "train.steps": steps,
      "optimizer.warmup_steps": 1,
      "optimizer.schedule": "constant",
      "mesh.data": 8,
      "eval.prompts": 8,
      "eval.samples": 2,
      "eval.every": 0,
      "checkpoint.every": 1,
      "log.every": 1,
      "log.tensorboard": False,
      "store.url": (workdir / "store").as_uri(),
    }
    | changes
  )
  return config


def steps_of(workdir):
  rows = logs.read_metrics(workdir / "metrics.jsonl")
  return [row["step"] for row in rows if "loss/total" in row]


def steps_of_or_none(workdir):
  return (workdir / "metrics.jsonl").exists() and steps_of(workdir)
