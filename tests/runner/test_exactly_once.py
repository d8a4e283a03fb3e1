"""A run that is killed fifty times, held against one that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import small

from tis_jax.learner import Checkpoints
from tis_jax.runner import logs, read_config
from tis_jax.runner.setup import build

pytestmark = pytest.mark.chaos

_KILLS = 50
_STEPS = 240
_ROWS = 16
_TRAIN = """
import json, sys
from pathlib import Path
from absl import logging
from ml_collections import ConfigDict
from tis_jax.runner import train
logging.set_verbosity(logging.WARNING)
train(ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""
# They count publications, of which a run that begins again makes more.
_OF_TIME = ("time/", "staleness", "sampler/")


def config_of(workdir):
  return small(
    workdir,
    _STEPS,
    **{
      "deterministic": True,
      "store.max_staleness": 0,
      "sampler.count": 2,
      "train.prompts_per_step": 8,
      "algorithm.micro_batches": 2,  # So the rows are packed.
      "checkpoint.every": 3,
      "mesh.data": 1,
    },
  )


def learner(workdir, environment):
  with (workdir / "said.log").open("ab") as said:
    return subprocess.Popen(
      [sys.executable, "-c", _TRAIN, config_of(workdir).to_json(), str(workdir)],
      stdout=said,
      stderr=subprocess.STDOUT,
      env=environment,
    )


def children(pid):
  """Processes that `pid` has started and that live (Linux)."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      stat = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if stat[1] == str(pid) and stat[0] != "Z":
      yield int(folder.name)


def kill(pids):
  killed = 0
  for pid in pids:
    try:
      os.kill(pid, signal.SIGKILL)
      killed += 1
    except ProcessLookupError:
      continue
  return killed


def disturb(process, rng):
  """Kills samplers at random moments, and at last the learner; counts the kills."""
  killed = 0
  while True:
    try:
      process.wait(rng.uniform(0.3, 5.0))
      return killed  # It gave its samplers up, or has finished.
    except subprocess.TimeoutExpired:
      pass
    samplers = list(children(process.pid))
    what = rng.choice(("a sampler", "samplers", "the learner", "both"))
    if what == "a sampler":
      killed += kill(rng.sample(samplers, min(1, len(samplers))))
    elif what == "samplers":
      killed += kill(samplers)
    else:
      process.kill()
      killed += 1 + (kill(samplers) if what == "both" else 0)
      process.wait()
      return killed


def final_params(workdir):
  config = config_of(workdir)
  config.mesh.data = -1  # The test's own devices, of which there are more.
  parts = build(read_config(config))
  run = json.loads((workdir / "run.json").read_text())["run"]
  with Checkpoints(workdir / "checkpoints", {"run": run}) as checkpoints:
    state, info = checkpoints.restore(parts.learner.abstract_state())
  return jax.device_get(state.params), info


def trained(workdir):
  """Every step's metrics, without what depends on time."""
  rows = logs.read_metrics(workdir / "metrics.jsonl")
  return [
    {name: x for name, x in row.items() if not any(y in name for y in _OF_TIME)}
    for row in rows
  ]


def test_fifty_kills_lose_nothing_repeat_nothing_and_change_no_bit(tmp_path):
  environment = os.environ | {
    "XLA_FLAGS": "",
    # What is compiled once need not be again, by the learner or its samplers.
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  calm, chaos = tmp_path / "calm", tmp_path / "chaos"
  calm.mkdir()
  chaos.mkdir()
  undisturbed = learner(calm, environment)
  assert undisturbed.wait() == 0, (calm / "said.log").read_text()

  seed = time.time_ns()
  print(f"seed {seed}")
  rng, killed, attempts = random.Random(seed), 0, 0
  log = chaos / "said.log"
  while killed < _KILLS:
    before = log.stat().st_size if log.exists() else 0
    process = learner(chaos, environment)
    attempts += 1
    try:
      killed += disturb(process, rng)
      said = log.read_text()[before:]
      assert process.returncode in (-signal.SIGKILL, 1), said
      assert process.returncode != 1 or "SamplerFailedError: sampler" in said, said
    finally:
      process.kill()
      process.wait()
  last = learner(chaos, environment)
  assert last.wait() == 0, (chaos / "said.log").read_text()
  print(f"{killed} kills over {attempts} attempts")

  summary = json.loads((chaos / "summary.json").read_text())
  assert summary["rollouts/trained"] == _STEPS * _ROWS
  for name in ("lost", "held", "filtered", "quarantined"):
    assert summary[f"rollouts/{name}"] == 0, name
  assert trained(chaos) == trained(calm)
  counts, calm_counts = (np.load(x / "weight_histogram.npz") for x in (chaos, calm))
  np.testing.assert_array_equal(counts["raw"], calm_counts["raw"])
  (params, info), (wanted, _) = final_params(chaos), final_params(calm)
  assert info["position"]["cursor"] == {"local0": _STEPS, "local1": _STEPS}
  jax.tree.map(np.testing.assert_array_equal, params, wanted)
