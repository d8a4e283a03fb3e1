"""A run of small steps that something else launches, seen from outside."""

import time
from pathlib import Path

from tiny_run import SMALL_STEPS, url_of

SETTINGS = SMALL_STEPS | {
  "checkpoint.every": 1,
  "optimizer.schedule": "constant",
  "store.max_staleness": 4,
}


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
