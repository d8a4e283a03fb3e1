"""A study as it is typed: stopped, gone on with, with an arm that fails."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tis_jax.runner import logs

_STUDY = """
from tis_jax.runner.study import Study

COMMON = {
  "sampler.prompts_per_record": 4,
  "sampler.group_size": 2,
  "train.prompts_per_step": 4,
  "train.steps": 100,
  "algorithm.micro_batches": 1,
  "optimizer.warmup_steps": 1,
  "optimizer.schedule": "constant",
  "eval.prompts": 8,
  "eval.samples": 2,
  "eval.every": 0,
  "log.tensorboard": False,
}


def get_config(part):
  arms = {"none": {"algorithm.correction.stages": ()}}
  arms["wild"] = {"optimizer.learning_rate": 1e30}
  return Study("quickstart", COMMON, arms, seeds=(0,))
"""


def steps_in(workdir):
  path = workdir / "metrics.jsonl"
  rows = logs.read_metrics(path) if path.exists() else []
  return [row["step"] for row in rows if "loss/total" in row]


def learners_of(folder):
  """Process ids of learners whose workdir is in `folder`."""
  listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True)
  return [
    int(line.split()[0])
    for line in listed.stdout.splitlines()
    if f"--workdir={folder}" in line and " train " in line
  ]


@pytest.mark.chaos
def test_a_study_is_stopped_gone_on_with_and_outlives_an_arm_that_fails(tmp_path):
  file, folder = tmp_path / "tiny.py", tmp_path / "runs"
  file.write_text(_STUDY)
  command = [sys.executable, "-m", "tis_jax", "study", f"--config={file}:part"]
  command += [f"--workdir={folder}", "--jobs=2"]
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

  def start():
    return subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=environment,
    )

  first = start()
  try:
    while not steps_in(folder / "none_seed-0"):
      assert first.poll() is None, first.communicate()[0]
      time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)[0]
  finally:
    first.kill()
    first.wait()
  assert first.returncode == 0, said
  assert "the same command goes on from there" in said
  assert not learners_of(folder)
  stopped = (folder / "none_seed-0" / "output.log").read_text()
  assert "stopped at step" in stopped
  assert not (folder / "part.md").exists()

  said = start().communicate(timeout=300)[0]
  output = (folder / "none_seed-0" / "output.log").read_text()
  assert "resumed  at step" in output, said
  assert steps_in(folder / "none_seed-0") == list(range(1, 101))
  none, wild = csv.DictReader((folder / "part.csv").read_text().splitlines())
  assert (none["state"], wild["state"]) == ("finished", "diverged")
  # It may have ended before the study was stopped, or after it went on. At which step
  # depends on when a group first has rewards that differ: the others have no gradient.
  assert re.match(r"BadUpdateError: step \d+: .* norm nan", wild["reason"])
  assert none["pass_at_1@0"] == none["pass_at_1/base"]
  assert str(tmp_path) not in (folder / "part.md").read_text()
  # Compiled once: by the child that was stopped, or by the one that went on.
  assert list((folder / "compiled").glob("jit_update-*"))

  last = start()
  said = last.communicate(timeout=300)[0]
  assert last.returncode == 0
  assert "2 runs, 0 to make" in said
