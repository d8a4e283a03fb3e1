"""A learner of two processes of four devices against one of eight."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tis_jax.store import Store

SCRIPT = Path(__file__).parent / "learner_process.py"
STEPS = 4

pytestmark = pytest.mark.processes


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def learn(folder, count, *more):
  """Runs the processes of a learner to their end: (exit codes, what they said)."""
  address = f"127.0.0.1:{free_port()}"
  told = [str(number) for number in (STEPS, *more)]
  environment = {x: v for x, v in os.environ.items() if x != "XLA_FLAGS"}
  processes = [
    subprocess.Popen(
      [sys.executable, SCRIPT, str(index), str(count), address, folder, *told],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**environment, "JAX_PLATFORMS": "cpu"},
    )
    for index in range(count)
  ]
  said = [process.communicate(timeout=500)[0] for process in processes]
  return [process.returncode for process in processes], said


def params_of(folder):
  store = Store.open((folder / "store").as_uri())
  return store.read_params(store.latest())


@pytest.fixture
def filled(tmp_path, make_rollout):
  """`filled(name)`: a folder with a store of records for every step."""

  def filled(name):
    folder = tmp_path / name
    store = Store.open((folder / "store").as_uri(), run="r", create=True)
    for seq in range(STEPS):
      store.put_rollout("a", seq, make_rollout(rows=32, prompt=4, length=6, seed=seq))
    return folder

  return filled


def test_two_processes_train_as_one_does_killed_or_not(filled):
  whole, split, killed = filled("whole"), filled("split"), filled("killed")
  codes, said = learn(whole, 1)
  assert codes == [0], said[0]
  codes, said = learn(split, 2)
  assert codes == [0, 0], "\n".join(said)
  assert "exported for tpu on 8 devices" in said[0]
  expected, found = params_of(whole), params_of(split)
  # Sums over devices are made in another order, and nothing else differs.
  for name, array in expected.items():
    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6)
  # Each publishes about half; nobody all.
  sizes = [int(text.split("publishes ")[1].split()[0]) for text in said]
  assert sum(sizes) == sum(array.nbytes for array in expected.values())
  assert max(sizes) < 0.75 * sum(sizes)

  codes, said = learn(killed, 2, 3)
  assert codes[0] != 0 and codes[1] != 0, said
  assert Store.open((killed / "store").as_uri()).latest() is None
  codes, said = learn(killed, 2)
  assert codes == [0, 0], "\n".join(said)
  again = params_of(killed)
  for name, array in found.items():
    np.testing.assert_array_equal(again[name], array)
