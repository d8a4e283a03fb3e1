"""Whole runs, small: sampler processes, learner, store, resumption, failures."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import quickstart
from tis_jax import models
from tis_jax.learner import load_batch
from tis_jax.runner import (
  BadUpdateError,
  ConfigChangedError,
  ConfigError,
  WorkdirInUseError,
  evaluate_run,
  logs,
  read_config,
  train,
)
from tis_jax.runner.setup import assignment
from tis_jax.runner.setup import build as build_parts
from tis_jax.runner.workdir import identify
from tis_jax.sampler import Fleet, SamplerFailedError
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import Store, TakenOverError, WrongRunError


def small(workdir, steps, **changes):
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


def test_a_run_trains_ends_with_figures_and_can_be_made_longer(tmp_path):
  summary = train(small(tmp_path, 2), tmp_path)
  assert summary["steps"] == 2
  assert summary["rollouts/trained"] == 16
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0
  assert np.isfinite([v for v in summary.values() if isinstance(v, float)]).all()
  ends = [summary["pass_at_1/base"], summary["pass_at_1/final"]]
  assert summary["pass_at_1/lowest"] == min(ends)
  assert json.loads((tmp_path / "summary.json").read_text()) == summary
  assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {
    "overview",
    "reward",
    "pass_at_1",
    "mismatch",
    "effective_sample_size",
    "weights",
  }
  batch, extra = load_batch(tmp_path / "batch.npz")
  gap = np.abs(extra["old_logp"] - batch.sampler_logp)[batch.mask]
  assert 0 < gap.mean() < 0.2  # bf16 and a version: a gap, and not a bug

  script = Path(__file__).parents[2] / "docs" / "make_metrics.py"
  groups = runpy.run_path(str(script))["GROUPS"]
  listed = {name for metrics in groups.values() for name in metrics}
  logged = {x for row in logs.read_metrics(tmp_path / "metrics.jsonl") for x in row}
  # What an evaluation and this chain's stage add; and the spread of each.
  apart = re.compile(r"step$|eval/|truncate/|rollouts/|.*/(std|stderr)$")
  assert {name for name in logged if not apart.match(name)} == listed

  longer = train(small(tmp_path, 3), tmp_path)
  assert longer["steps"] == 3
  assert longer["rollouts/trained"] == 24
  assert longer["pass_at_1/base"] == summary["pass_at_1/base"]
  assert steps_of(tmp_path) == [1, 2, 3]
  assert 0 <= evaluate_run(tmp_path, prompts=8, samples=2).pass_at_1 <= 1

  with pytest.raises(ConfigChangedError, match="seed: 0 then, 1 now"):
    train(small(tmp_path, 3, seed=1), tmp_path)


@pytest.mark.learning
def test_a_critic_is_trained_beside_the_policy_and_resumed_with_it(tmp_path):
  changes = {
    "algorithm.advantage.name": "gae",
    "algorithm.advantage.gae.trace": 0.95,
    "algorithm.advantage.gae.whitened": True,
    "algorithm.critic.optimizer.learning_rate": 1e-3,
    "algorithm.critic.optimizer.warmup_steps": 1,
    "sampler.prompts_per_record": 16,
    "sampler.group_size": 4,
    "train.prompts_per_step": 16,
  }
  train(small(tmp_path, 6, **changes), tmp_path)
  summary = train(small(tmp_path, 12, **changes), tmp_path)
  assert summary["rollouts/trained"] == 12 * 64
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  errors = [row["value/error_squared"] for row in rows if "loss/value" in row]
  assert len(errors) == 12
  # Values begin at 0 and rewards are 0 or 1: half the error is the share of successes.
  assert np.mean(errors[-3:]) < 0.75 * errors[0]
  assert evaluate_run(tmp_path, prompts=8, samples=2).pass_at_1 >= 0


def test_gdpo_weighs_the_tasks_rewards_by_name(tmp_path):
  config = small(tmp_path, 1, **{"algorithm.advantage.name": "gdpo"})
  config.algorithm.advantage.gdpo.weights = {"number": 0.25, "correct": 1.0}
  train(config, tmp_path)
  batch, _ = load_batch(tmp_path / "batch.npz")
  correct, number = batch.named_rewards.T
  np.testing.assert_array_equal(correct, batch.rewards)
  assert (number >= correct).all() and number.max() == 1
  advantage = build_parts(read_config(config)).learner.algorithm.advantage
  assert advantage.keywords["weights"] == (1.0, 0.25)


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ({"correct": 1.0, "numbr": 1.0}, "did you mean 'number'"),
    ({"correct": 1.0}, "lack number, of task 'gsm8k_steps'"),
  ],
)
def test_weights_are_of_rewards_that_the_task_has(tmp_path, weights, message):
  config = small(tmp_path, 1, **{"algorithm.advantage.name": "gdpo"})
  config.algorithm.advantage.gdpo.weights = weights
  with pytest.raises(ConfigError, match=message):
    build_parts(read_config(config))


def test_remax_has_the_samplers_answer_greedily_too(tmp_path):
  train(small(tmp_path, 2, **{"algorithm.advantage.name": "remax"}), tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  greedy = [row["reward/greedy"] for row in rows if "loss/total" in row]
  assert len(greedy) == 2
  # Whole answers to whole groups, and the base policy gets about half of them right.
  assert 0 < np.mean(greedy) <= 1
  batch, _ = load_batch(tmp_path / "batch.npz")
  pairs = batch.greedy_rewards.reshape(-1, 2)
  np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"optimizer.warmup_steps": 9}, "warmup_steps 9 is not in 0..2"),
    ({"algorithm.old_logp": "sampler"}, "bypass mode"),
    ({"sampler.temperature": 0.0}, "greedy rollouts have no ratio"),
    ({"sampler.precision": "float8"}, "float8"),
  ],
)
def test_impossible_settings_are_said_and_leave_the_workdir_free(
  change, message, tmp_path
):
  with pytest.raises(ConfigError, match=message):
    train(small(tmp_path, 2, **change), tmp_path)
  assert not (tmp_path / "config.json").exists()
  assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
  ("changes", "step"),
  [
    ({"optimizer.learning_rate": 1e30}, 1),
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
    until(lambda: steps_of_or_none(tmp_path))
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
    while not steps_of_or_none(workdir):
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
    while not steps_of_or_none(tmp_path):
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
    while not steps_of_or_none(tmp_path):
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


def steps_of_or_none(workdir):
  return (workdir / "metrics.jsonl").exists() and steps_of(workdir)


def children_named(*words):
  """Process ids whose command line holds all of `words` (Linux)."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      command = (folder / "cmdline").read_bytes().decode()
    except OSError:
      continue
    if all(word in command for word in words):
      yield int(folder.name)
