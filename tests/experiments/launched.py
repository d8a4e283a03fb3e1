"""A run of small steps that something else launches, seen from outside."""

import time
from pathlib import Path

from tis_jax.runner import logs

SETTINGS = {
  "algorithm.micro_batches": 1,
  "checkpoint.every": 1,
  "eval.prompts": 8,
  "log.tensorboard": "false",
  "optimizer.schedule": "constant",
  "optimizer.warmup_steps": 1,
  "sampler.group_size": 2,
  "sampler.prompts_per_record": 4,
  "store.max_staleness": 4,
  "train.prompts_per_step": 4,
}


def url_of(folder):
  return (folder / "store").as_uri()


def steps_of(folder):
  if not (folder / "metrics.jsonl").exists():
    return []
  rows = logs.read_metrics(folder / "metrics.jsonl")
  return [row["step"] for row in rows if "loss/total" in row]


def processes(folder, *commands):
  """Learners and samplers of the run in `folder`, or one kind of them (Linux)."""
  found = []
  for process in Path("/proc").glob("[0-9]*"):
    try:
      words = (process / "cmdline").read_bytes().decode().split("\0")
    except OSError:
      continue
    is_ours = "python" in words[0] and any(url_of(folder) in word for word in words)
    if is_ours and set(words) & set(commands or ("train", "sample")):
      found.append(int(process.name))
  return found


def wait_until_gone(folder):
  """Until nothing of the run is left, whoever launched it."""
  deadline = time.monotonic() + 60
  while left := processes(folder):
    assert time.monotonic() < deadline, left
    time.sleep(0.2)
