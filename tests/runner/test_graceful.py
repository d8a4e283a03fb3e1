"""A run that is asked to end: in time, with its state, and with nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import small, steps_of

from tis_jax.runner.interrupts import Interrupted, Interrupts
from tis_jax.runner.workdir import locked
from tis_jax.store.location import default_folders


def test_the_first_signal_is_noted_and_the_second_is_not():
  with Interrupts() as interrupts:
    interrupts.check()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
      interrupts.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(5)
    with pytest.raises(SystemExit) as raised:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
  assert raised.value.code == 128 + signal.SIGTERM


_STUCK = """
import time
from tis_jax.runner.interrupts import Interrupts
with Interrupts(0.3, lambda: print("too late", flush=True)):
  print("busy", flush=True)
  for _ in range(600):
    time.sleep(0.1)
"""


def test_what_takes_longer_is_not_waited_for():
  stuck = subprocess.Popen(
    [sys.executable, "-c", _STUCK], stdout=subprocess.PIPE, text=True
  )
  try:
    assert stuck.stdout.readline() == "busy\n"
    stuck.terminate()
    assert stuck.communicate(timeout=30)[0] == "too late\n"
  finally:
    stuck.kill()
  assert stuck.returncode == 128 + signal.SIGTERM


_TRAIN = """
import json, sys
from pathlib import Path
from ml_collections import ConfigDict
from tis_jax.runner import train
train(ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def start(workdir, steps, **changes):
  workdir.mkdir(exist_ok=True)
  config = small(workdir, steps, **{"mesh.data": 1, "store.url": "", **changes})
  with (workdir / "said.log").open("wb") as said:
    return subprocess.Popen(
      [sys.executable, "-c", _TRAIN, config.to_json(), str(workdir)],
      stdout=said,
      stderr=subprocess.STDOUT,
      env=os.environ | {"XLA_FLAGS": ""},
    )


def living(*words):
  """Processes whose command line has all of `words` (Linux)."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      command = (folder / "cmdline").read_bytes().decode()
    except OSError:
      continue
    if all(word in command for word in words):
      yield int(folder.name)


def left_in_memory(run):
  """What lies in the places that a run's store is put to by default."""
  return [
    path
    for folder in default_folders()
    for path in (folder / run, *(folder / "engines").glob(f"{run}-*"))
    if path.exists()
  ]


def run_of(workdir):
  return json.loads((workdir / "run.json").read_text())["run"]


def wait_for_steps(learner, workdir, steps=1):
  while len(steps_of(workdir)) < steps:
    assert learner.poll() is None, (workdir / "said.log").read_text()
    time.sleep(0.05)


@pytest.mark.chaos
def test_a_finished_run_leaves_nothing_in_memory_and_a_longer_one_goes_on(tmp_path):
  first = start(tmp_path, 3)
  assert first.wait(300) == 0, (tmp_path / "said.log").read_text()
  assert left_in_memory(run_of(tmp_path)) == []
  longer = start(tmp_path, 5)
  assert longer.wait(300) == 0, (tmp_path / "said.log").read_text()
  assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
  assert json.loads((tmp_path / "summary.json").read_text())["rollouts/lost"] == 0
  assert left_in_memory(run_of(tmp_path)) == []


@pytest.mark.chaos
def test_what_a_longer_run_needs_stays(tmp_path):
  # Of each record two groups are left over for the next step.
  halves = {"train.prompts_per_step": 2}
  assert start(tmp_path, 3, **halves).wait(300) == 0
  said = (tmp_path / "said.log").read_text()
  assert "keeps 1 record for a longer run" in said
  assert start(tmp_path, 4, **halves).wait(300) == 0
  assert json.loads((tmp_path / "summary.json").read_text())["rollouts/lost"] == 0
  assert left_in_memory(run_of(tmp_path)) == []


@pytest.mark.chaos
def test_sigterm_is_followed_in_time(tmp_path):
  learner = start(tmp_path, 5000, **{"checkpoint.every": 10_000})
  wait_for_steps(learner, tmp_path)
  began = time.monotonic()
  learner.terminate()
  assert learner.wait(60) == 0, (tmp_path / "said.log").read_text()
  assert time.monotonic() - began < 20
  step = steps_of(tmp_path)[-1]
  assert f"stopped at step {step};" in (tmp_path / "said.log").read_text()
  assert list(living("tis_jax.sampler", run_of(tmp_path))) == []
  with locked(tmp_path):
    pass
  # It goes on from there, to an end that leaves nothing.
  assert start(tmp_path, step + 1, **{"checkpoint.every": 10_000}).wait(300) == 0
  assert left_in_memory(run_of(tmp_path)) == []


@pytest.mark.chaos
def test_ctrl_c_twice_leaves_no_orphan_and_no_lock(tmp_path):
  learner = start(tmp_path, 5000)
  wait_for_steps(learner, tmp_path)
  run = run_of(tmp_path)
  assert list(living("tis_jax.sampler", run))
  began = time.monotonic()
  learner.send_signal(signal.SIGINT)
  time.sleep(0.05)
  learner.send_signal(signal.SIGINT)
  learner.wait(60)
  assert time.monotonic() - began < 20
  assert list(living("tis_jax.sampler", run)) == []
  with locked(tmp_path):
    pass
  step = steps_of(tmp_path)[-1]
  assert start(tmp_path, step + 2).wait(300) == 0
  assert left_in_memory(run) == []


@pytest.mark.chaos
def test_a_suspended_learner_holds_its_workdir_and_goes_on(tmp_path):
  learner = start(tmp_path, 60)
  wait_for_steps(learner, tmp_path)
  learner.send_signal(signal.SIGSTOP)
  try:
    second = start(tmp_path, 60)
    assert second.wait(120) != 0
    assert "WorkdirInUseError" in (tmp_path / "said.log").read_text()
  finally:
    learner.send_signal(signal.SIGCONT)
  assert learner.wait(300) == 0
  assert steps_of(tmp_path) == list(range(1, 61))


@pytest.mark.chaos
def test_a_suspended_sampler_is_waited_for(tmp_path):
  learner = start(tmp_path, 400)
  wait_for_steps(learner, tmp_path)
  (sampler,) = living("tis_jax.sampler", run_of(tmp_path))
  os.kill(sampler, signal.SIGSTOP)
  time.sleep(3)
  waited_at = steps_of(tmp_path)[-1]
  time.sleep(1)
  assert steps_of(tmp_path)[-1] == waited_at < 400
  os.kill(sampler, signal.SIGCONT)
  wait_for_steps(learner, tmp_path, waited_at + 3)
  learner.terminate()
  assert learner.wait(60) == 0
  steps = steps_of(tmp_path)
  assert steps == list(range(1, len(steps) + 1))
