"""What goes wrong in whole runs: losses, samplers, signals, a second learner."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_run import small, steps_of

from tis_jax import models
from tis_jax.learner import load_batch
from tis_jax.runner import (
  BadUpdateError,
  WorkdirInUseError,
  logs,
  read_config,
  train,
)
from tis_jax.runner.setup import assignment
from tis_jax.runner.workdir import identify
from tis_jax.sampler import Fleet, SamplerFailedError
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import Store, StoreError, TakenOverError, WrongRunError


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changes", "step"),
  [
    ({"optimizer.learning_rate": float("inf")}, 1),
    ({"algorithm.entropy_coefficient": float("inf")}, 0),
  ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
  changes, step, tmp_path
):
  with pytest.raises(BadUpdateError, match=f"step {step}: .* the batch is in"):
    train(small(tmp_path, 5, **changes), tmp_path)
  (path,) = tmp_path.glob("bad_batch_*.npz")
  assert load_batch(path)[0].mask.any()


def test_a_sampler_that_cannot_live_is_given_up_on_with_its_last_words(tmp_path):
  said = []
  nowhere = (tmp_path / "nowhere").as_uri()
  fleet = Fleet(nowhere, 1, tmp_path / "logs", deaths=2, on_event=said.append)
  fleet.start()
  deadline = time.monotonic() + 180
  with pytest.raises(SamplerFailedError, match="holds no run; start the learner first"):
    while time.monotonic() < deadline:
      fleet.check()
      time.sleep(0.1)
  fleet.stop()
  assert "died with exit code 1" in said[0]
  assert "started again" in said[1]


def records_ready(config, workdir, count):
  """Fills the store of a run to come, as a sampler elsewhere does that is far ahead."""
  assigned = assignment(read_config(config))
  identity = identify(config.store.url, workdir)
  store = Store.open(
    identity.store, identity.run, create=True, config=assigned.to_json()
  )
  params = models.flatten(models.load(assigned.model)[1])
  store.publish(0, params, {"cursor": {}})
  engine, environment = build(assigned)
  engine.update(store.read_params(store.latest()), 0)
  record = Worker(assigned, "elsewhere", 1, engine, environment).rollout(0)
  for seq in range(count):
    store.put_rollout("elsewhere", seq, record)


@pytest.mark.slow
def test_signals_and_dead_samplers_are_seen_with_records_ready_for_every_step(
  tmp_path, monkeypatch
):
  config = small(tmp_path, 300, **{"checkpoint.every": 1000})
  records_ready(config, tmp_path, 300)
  said, signalled, ended = [], [], threading.Event()
  monkeypatch.setattr(logs, "say", lambda *parts, sep=" ": said.append(sep.join(parts)))

  def until(condition):
    while not condition() and not ended.is_set():
      time.sleep(0.01)

  def disturb():
    until(lambda: steps_of(tmp_path))
    for pid in children_named("tis_jax.sampler", str(tmp_path)):
      os.kill(pid, signal.SIGKILL)
    until(lambda: any("local0 died by signal 9" in line for line in said))
    if not ended.is_set():
      signalled.append(steps_of(tmp_path)[-1])
      os.kill(os.getpid(), signal.SIGTERM)

  disturber = threading.Thread(target=disturb)
  disturber.start()
  try:
    summary = train(config, tmp_path)
  finally:
    ended.set()
    disturber.join()
  assert signalled, "the death of a sampler was not seen"
  assert summary == {}
  (stopped,) = [line for line in said if line.startswith("stopped at step")]
  step = int(stopped.split()[3].rstrip(";"))
  assert signalled[0] <= step <= signalled[0] + 10
  assert step in {int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")}


_TRAIN = """
import json, sys
from pathlib import Path
from ml_collections import ConfigDict
from tis_jax.runner import train
train(ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.chaos
def test_a_second_learner_is_refused_and_the_first_goes_on(tmp_path):
  workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
  config = small(tmp_path, 2000, **{"checkpoint.every": 5000})
  command = [sys.executable, "-c", _TRAIN, config.to_json(), str(workdir)]
  first = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  try:
    while not steps_of(workdir):
      assert first.poll() is None, first.communicate()[0]
      time.sleep(0.1)
    written = [workdir / name for name in ("run.json", "config.json")]
    before = [path.stat().st_mtime_ns for path in written]
    with pytest.raises(WorkdirInUseError, match=f"process {first.pid} on"):
      train(small(tmp_path, 2001, **{"checkpoint.every": 5000}), workdir)
    assert before == [path.stat().st_mtime_ns for path in written]
    # Another workdir is another run, whose store this is not.
    with pytest.raises(WrongRunError, match="belongs to run"):
      train(config, elsewhere)
    refused_at = steps_of(workdir)[-1]
    while steps_of(workdir)[-1] < refused_at + 5:
      assert first.poll() is None, first.communicate()[0]
      time.sleep(0.1)
    first.terminate()
    said = first.communicate(timeout=300)[0]
  finally:
    first.kill()
    first.wait()
  assert first.returncode == 0, said
  steps = steps_of(workdir)
  assert steps == list(range(1, len(steps) + 1))
  assert f"stopped at step {len(steps)};" in said


@pytest.mark.chaos
def test_a_learner_that_was_taken_over_ends_and_leaves_the_run_to_the_other(tmp_path):
  def take_over():
    while not steps_of(tmp_path):
      time.sleep(0.01)
    # As a learner does whose workdir is a copy of this one.
    run = json.loads((tmp_path / "run.json").read_text())["run"]
    opened.append(Store.open(config.store.url, run, create=True))

  opened, config = [], small(tmp_path, 300)
  other = threading.Thread(target=take_over, daemon=True)
  other.start()
  with pytest.raises(TakenOverError, match="another learner has gone on with run"):
    train(config, tmp_path)
  other.join()
  assert opened[0].stopped() is None
  opened[0].stop("enough")


@pytest.mark.chaos
def test_a_killed_sampler_is_started_again_and_nothing_is_lost(tmp_path, monkeypatch):
  def kill_the_sampler():
    log = tmp_path / "samplers" / "local0.log"
    while not steps_of(tmp_path):
      time.sleep(0.1)
    for pid in children_named("tis_jax.sampler", str(tmp_path)):
      os.kill(pid, signal.SIGKILL)
    assert log.exists()

  killer = threading.Thread(target=kill_the_sampler, daemon=True)
  killer.start()
  said = []
  monkeypatch.setattr(logs, "say", lambda *parts, sep=" ": said.append(sep.join(parts)))
  summary = train(small(tmp_path, 40), tmp_path)
  killer.join(10)
  assert summary["steps"] == 40
  assert summary["rollouts/trained"] == 40 * 8
  assert summary["rollouts/lost"] == 0
  assert any("died by signal 9" in line for line in said)
  assert any("started again" in line for line in said)


def test_another_runs_store_is_refused_and_a_free_one_is_taken(tmp_path):
  taken, workdir = (tmp_path / "taken").as_uri(), tmp_path / "run"
  Store.open(taken, "another", create=True)
  with pytest.raises(WrongRunError, match="belongs to run 'another'"):
    train(small(workdir, 1, **{"store.url": taken}), workdir)
  assert not (workdir / "config.json").exists()
  said = json.loads((workdir / "run.json").read_text())
  assert identify(f"{taken}2", workdir).store == f"{taken}2" != said["store"]


@pytest.mark.chaos
def test_a_store_that_vanishes_costs_no_step_and_the_run_begins_another(tmp_path):
  def vanish():
    while not (steps_of(tmp_path) or [0])[-1] > 4:
      time.sleep(0.01)
    (tmp_path / "store").rename(tmp_path / "elsewhere")

  vanishing = threading.Thread(target=vanish, daemon=True)
  vanishing.start()
  never = {"checkpoint.every": 1000}
  # Said by the learner, or at last by a sampler that is started there again.
  with pytest.raises(
    (StoreError, SamplerFailedError), match=r"no longer|holds no run"
  ) as raised:
    train(small(tmp_path, 2000, **never), tmp_path)
  vanishing.join()
  step = steps_of(tmp_path)[-1]
  assert f"The state of step {step} is saved" in "".join(raised.value.__notes__)
  summary = train(small(tmp_path, step + 2, **never), tmp_path)
  assert summary["rollouts/trained"] == (step + 2) * 8
  assert steps_of(tmp_path) == list(range(1, step + 3))


# Room for three versions of the params, 1.3 MB each, and not for a fourth, which is
# written before the oldest is deleted.
_FULL = 'mount -t tmpfs -o size=4500k none small && exec "$@"'
_READ_ONLY = """
mount -t tmpfs none small || exit 1
(
  until grep -q '"step": 4,' run/metrics.jsonl 2>/dev/null; do sleep 0.1; done
  until mount -o remount,ro small 2>/dev/null; do sleep 0.01; done
) &
exec "$@"
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
  ("script", "says"),
  [
    (_FULL, "there is no room left: make some"),
    (_READ_ONLY, "refused, it is read-only"),
  ],
  ids=["full", "read_only"],
)
def test_a_store_that_takes_no_more_is_said_and_costs_no_step(script, says, tmp_path):
  config = small(tmp_path, 5000, **{"checkpoint.every": 9000, "mesh.data": 1})
  config.store.url = f"{(tmp_path / 'small' / 'store').as_uri()}/"
  (tmp_path / "small").mkdir()
  command = [sys.executable, "-c", _TRAIN, config.to_json(), str(tmp_path / "run")]
  done = subprocess.run(
    ["unshare", "-rm", "sh", "-c", script, "sh", *command],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  if done.stderr.startswith(("unshare", "mount")):
    pytest.skip(f"no file system of one's own here: {done.stderr[:80]}")
  assert done.returncode == 1
  assert says in done.stderr
  assert "is saved: the same command goes on." in done.stderr
  assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


_SKEWED = """
import sys, time
real, hours = time.time, float(sys.argv[1])
time.time = lambda: real() + 3600 * hours
from tis_jax.sampler.__main__ import main
main(sys.argv[2:])
"""


@pytest.mark.chaos
@pytest.mark.parametrize("hours", [-6, 6])
def test_clocks_may_differ_by_hours(hours, tmp_path):
  def sample():
    while not (tmp_path / "store" / "params" / "LATEST").exists():
      time.sleep(0.05)
    command = [sys.executable, "-c", _SKEWED, str(hours)]
    command += [f"--store={config.store.url}", "--name=elsewhere"]
    with (tmp_path / "elsewhere.log").open("wb") as log:
      samplers.append(subprocess.Popen(command, stdout=log, stderr=log))

  config, samplers = small(tmp_path, 6, **{"sampler.count": 0}), []
  threading.Thread(target=sample, daemon=True).start()
  try:
    summary = train(config, tmp_path)
    assert samplers[0].wait(60) == 0, (tmp_path / "elsewhere.log").read_text()
  finally:
    for sampler in samplers:
      sampler.kill()
  assert summary["rollouts/trained"] == 6 * 8
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0


@pytest.mark.chaos
def test_a_copied_workdir_takes_the_run_and_the_first_says_what_it_misses(
  tmp_path, monkeypatch
):
  first, copy = tmp_path / "first", tmp_path / "copy"
  url = {"store.url": (tmp_path / "store").as_uri()}
  train(small(first, 2, **url), first)
  shutil.copytree(first, copy)
  train(small(copy, 6, **url), copy)
  said = []
  monkeypatch.setattr(logs, "say", lambda *parts, sep=" ": said.append(sep.join(parts)))
  summary = train(small(first, 6, **url), first)
  lost = [line for line in said if line.startswith("lost local0/")]
  assert len(lost) == 4 and "of a copy of this workdir say" in lost[0]
  assert summary["rollouts/lost"] == 4 * 8
  assert summary["rollouts/trained"] == 6 * 8
  rows = logs.read_metrics(first / "metrics.jsonl")
  assert max(row.get("rollouts/lost", 0) for row in rows) == 4 * 8


@pytest.mark.chaos
def test_a_torn_record_is_set_aside_and_training_goes_on(tmp_path):
  first = train(small(tmp_path, 2), tmp_path)
  records = sorted((tmp_path / "store" / "rollouts" / "local0").iterdir())
  assert records  # written ahead of the learner, for the next attempt
  records[0].write_bytes(records[0].read_bytes()[:100])
  second = train(small(tmp_path, 4), tmp_path)
  assert second["steps"] == 4
  assert second["rollouts/quarantined"] == 1
  assert second["rollouts/lost"] == 0
  assert second["rollouts/trained"] == first["rollouts/trained"] + 16


def children_named(*words):
  """Process ids whose command line holds all of `words` (Linux)."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      command = (folder / "cmdline").read_bytes().decode()
    except OSError:
      continue
    if all(word in command for word in words):
      yield int(folder.name)
