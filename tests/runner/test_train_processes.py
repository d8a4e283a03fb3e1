"""`tis train` by two processes of four devices against one of eight."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import small, steps_of

from tis_jax.engines.served.process import free_port
from tis_jax.runner import logs
from tis_jax.runner.workdir import locked
from tis_jax.store import Store

SCRIPT = Path(__file__).parent / "train_process.py"
STEPS = 12
SETTINGS = {
  "deterministic": True,
  "store.max_staleness": 0,
  "mesh.data": 2,
  "mesh.fsdp": 2,
  "mesh.tensor": 2,
  "algorithm.packing": True,
  # Shards of a reference policy, too.
  "algorithm.kl.coefficient": 0.1,
  "optimizer.learning_rate": 1e-3,
  "sampler.precision": "float32",
  "processes.seconds": 20,
}

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _compiled_once(tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.getbasetemp() / "compiled"
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def start(workdir, count, steps=STEPS, **changes):
  """Starts the processes of a learner: each says what it says in a file."""
  workdir.mkdir(exist_ok=True)
  port, started = free_port(), []
  for index in range(count):
    own = {
      "processes.count": count,
      "processes.index": index,
      "processes.coordinator": f"127.0.0.1:{port}",
    }
    config = small(workdir, steps, **SETTINGS | own | changes)
    with said_by(workdir, index).open("ab") as said:
      started.append(
        subprocess.Popen(
          [sys.executable, SCRIPT, config.to_json(), workdir, str(8 // count)],
          stdout=said,
          stderr=subprocess.STDOUT,
          env=os.environ | {"XLA_FLAGS": ""},
        )
      )
  return started


def said_by(workdir, index):
  return workdir / f"said{index}.log"


def said(workdir):
  return "\n".join(path.read_text() for path in sorted(workdir.glob("said*.log")))


def codes(processes):
  return [process.wait(600) for process in processes]


def wait_for_steps(processes, workdir, steps):
  while len(steps_of(workdir)) < steps:
    assert all(process.poll() is None for process in processes), said(workdir)
    time.sleep(0.02)


def params_of(workdir):
  store = Store.open((workdir / "store").as_uri())
  return store.read_params(store.latest())


def metrics_of(workdir):
  """What was measured, without what the clock and the samplers say."""
  return [
    {k: v for k, v in row.items() if not k.startswith(("time/", "sampler/"))}
    for row in logs.read_metrics(workdir / "metrics.jsonl")
  ]


def test_two_processes_train_as_one_does_ended_and_killed_or_not(tmp_path):
  whole, split, ended = (tmp_path / name for name in ("whole", "split", "ended"))
  assert codes(start(whole, 1)) == [0], said(whole)
  assert codes(start(split, 2)) == [0, 0], said(split)

  # Sums over devices are made in another order, and nothing else differs.
  expected, found = params_of(whole), params_of(split)
  for name, array in expected.items():
    np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)
  assert steps_of(split) == list(range(1, STEPS + 1))
  for row, other in zip(metrics_of(whole), metrics_of(split), strict=True):
    assert row == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)
  batches = [np.load(workdir / "batch.npz") for workdir in (whole, split)]
  for name, array in batches[0].items():
    np.testing.assert_allclose(batches[1][name], array, rtol=1e-3, atol=1e-4)

  # A signal to one that does not lead ends both behind one step.
  processes = start(ended, 2)
  wait_for_steps(processes, ended, 2)
  processes[1].terminate()
  assert codes(processes) == [os.EX_TEMPFAIL] * 2, said(ended)
  step = steps_of(ended)[-1]
  assert 2 <= step < STEPS
  assert f"stopped at step {step};" in said_by(ended, 0).read_text()
  assert (ended / "checkpoints" / str(step)).exists()

  # One that is killed is missed, and the other does not wait for it.
  processes = start(ended, 2)
  wait_for_steps(processes, ended, step + 1)
  processes[1].kill()
  assert codes(processes) == [os.EX_TEMPFAIL, -signal.SIGKILL], said(ended)
  assert f"resumed  at step {step}" in said(ended)
  assert "no sign of life of process 1 of 2 for 20 s" in said(ended)
  step = steps_of(ended)[-1]
  assert step < STEPS

  # Of the one that leads, JAX itself misses the service.
  processes = start(ended, 2)
  wait_for_steps(processes, ended, step + 1)
  processes[0].kill()
  first, second = codes(processes)
  assert first == -signal.SIGKILL and second not in (0, 1), said(ended)
  assert codes(start(ended, 2)) == [0, 0], said(ended)
  assert steps_of(ended) == list(range(1, STEPS + 1))
  again = params_of(ended)
  for name, array in found.items():
    np.testing.assert_array_equal(again[name], array)
  summary = json.loads((ended / "summary.json").read_text())
  assert summary["rollouts/lost"] == 0


def test_what_one_refuses_ends_the_other_in_its_words(tmp_path):
  # Only the lead looks at the lock.
  with locked(tmp_path):
    assert codes(start(tmp_path, 2)) == [1, 1], said(tmp_path)
  assert "WorkdirInUseError" in said_by(tmp_path, 0).read_text()
  told = "ProcessFailedError: process 0 failed: WorkdirInUseError"
  assert told in said_by(tmp_path, 1).read_text()
