"""A fleet on a Ray cluster of three nodes here, that loses nearly everything."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from launched import SETTINGS, processes, wait_until_gone
from tiny_run import steps_of, url_of

from tis_jax.store import Store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "launch" / "ray_fleet.py"
pytestmark = pytest.mark.ray


@pytest.fixture
def nodes(monkeypatch, tmp_path_factory):
  """A cluster of one node for the learner and two for samplers: (cluster, the two)."""
  from ray.cluster_utils import Cluster

  monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  # Newer Rays end what a lost worker has started; here the fleet itself is to.
  monkeypatch.setenv("RAY_process_group_cleanup_enabled", "0")
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  cache = tmp_path_factory.mktemp("compiled")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
  memory = {"object_store_memory": 80 * 2**20}
  head = {"num_cpus": 1, "resources": {"learner": 1}, **memory}
  cluster = Cluster(initialize_head=True, head_node_args=head)
  try:
    of_samplers = [
      cluster.add_node(num_cpus=2, resources={"sampler": 2}, **memory) for _ in "ab"
    ]
    yield cluster, of_samplers
  finally:
    cluster.shutdown()


def start(cluster, folder, *options, **settings):
  """The fleet of the run in `folder`, as it is typed; what it says is in said.log."""
  settings = SETTINGS | {k.replace("__", "."): v for k, v in settings.items()}
  folder.mkdir(exist_ok=True)
  with (folder / "said.log").open("wb") as said:
    return subprocess.Popen(
      [
        *(sys.executable, SCRIPT, f"--address={cluster.address}"),
        *("--config=quickstart", f"--workdir={folder}", f"--store={url_of(folder)}"),
        *("--samplers=2", "--learner_needs=CPU=1,learner=1"),
        *("--sampler_needs=CPU=1,sampler=1", *options),
        *(f"--config.{name}={value}" for name, value in settings.items()),
      ],
      stdout=said,
      stderr=subprocess.STDOUT,
    )


def said_in(folder):
  return (folder / "said.log").read_text(errors="replace")


def wait_for(condition, driver, folder, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert driver.poll() is None, said_in(folder)
    assert time.monotonic() < deadline, said_in(folder)
    time.sleep(0.2)


def parent_of(pid):
  return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_below(pid, ancestor):
  while pid > 1 and pid != ancestor:
    pid = parent_of(pid)
  return pid == ancestor


def raylet(node):
  return node.all_processes["raylet"][0].process.pid


def test_a_fleet_loses_processes_actors_a_node_and_its_driver(nodes, tmp_path):
  cluster, of_samplers = nodes
  folder = tmp_path / "run"
  driver = start(cluster, folder, train__steps=100_000)

  def wait_until(condition, seconds=300):
    wait_for(condition, driver, folder, seconds)

  def samples(name, seq=0):
    return store.heartbeats().get(name, {}).get("seq", 0) > seq

  def comes_back(name, pid):
    """A sampler is another process than it was, and hands over more records."""
    seq = store.next_seq(name)
    wait_until(lambda: store.heartbeats()[name]["pid"] != pid and samples(name, seq))
    return store.heartbeats()[name]["pid"]

  try:
    wait_until(lambda: steps_of(folder))
    store = Store.open(url_of(folder))
    wait_until(lambda: samples("ray0") and samples("ray1"))
    pids = {name: store.heartbeats()[name]["pid"] for name in ("ray0", "ray1")}
    (learner,) = processes(folder, "train")
    assert is_below(learner, raylet(cluster.head_node))
    # One on each node.
    on = {
      name: [is_below(p, raylet(n)) for n in of_samplers] for name, p in pids.items()
    }
    assert sorted(on.values()) == [[False, True], [True, False]]

    # A sampler's process.
    os.kill(pids["ray0"], signal.SIGKILL)
    pid = comes_back("ray0", pids["ray0"])
    assert "ray0 ended by signal 9, and is started again" in said_in(folder)

    # An actor: its process goes with it, before another has taken its name.
    os.kill(parent_of(pid), signal.SIGKILL)
    wait_until(lambda: pid not in processes(folder), 30)
    assert store.heartbeats()["ray0"]["pid"] == pid
    comes_back("ray0", pid)

    # A node: what ran there runs on the other one.
    lost = on["ray1"].index(True)
    left = of_samplers[1 - lost]
    cluster.remove_node(of_samplers[lost], allow_graceful=False)
    pid = comes_back("ray1", pids["ray1"])
    assert is_below(pid, raylet(left))
    assert pids["ray1"] not in processes(folder)

    # The learner, which goes on from its checkpoint.
    step = steps_of(folder)[-1]
    os.kill(learner, signal.SIGKILL)
    wait_until(lambda: processes(folder, "train") not in ([], [learner]))
    wait_until(lambda: steps_of(folder)[-1] > step + 2)
    assert "learner ended by signal 9, and is started again" in said_in(folder)

    # The whole fleet is told to end, and saves its state.
    driver.terminate()
    assert driver.wait(120) == os.EX_TEMPFAIL, said_in(folder)
    wait_until_gone(folder)
    assert "stopped at step" in said_in(folder)

    # The driver alone is killed: nobody outlives it.
    step = steps_of(folder)[-1]
    driver = start(cluster, folder, train__steps=100_000)
    wait_until(lambda: steps_of(folder)[-1] > step)
    driver.kill()
    driver.wait()
    wait_until_gone(folder)

    # And a shorter run goes on to its end.
    step = steps_of(folder)[-1]
    driver = start(cluster, folder, train__steps=step + 3)
    assert driver.wait(300) == 0, said_in(folder)
    wait_until_gone(folder)
  finally:
    driver.kill()
    driver.wait()
  assert steps_of(folder) == list(range(1, step + 4))
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["rollouts/lost"] == 0
  assert summary["rollouts/quarantined"] == 0

  # What the learner refuses it is not asked again.
  driver = start(cluster, folder, train__steps=step + 3, seed=5)
  assert driver.wait(120) == 1, said_in(folder)
  assert "learner is given up on, with exit code 1" in said_in(folder)
  assert "ConfigChangedError" in said_in(folder)
  assert "started again" not in said_in(folder)
  wait_until_gone(folder)


def test_a_learner_of_two_hosts_loses_a_process_an_actor_and_a_node(nodes, tmp_path):
  cluster, of_samplers = nodes
  folder = tmp_path / "run"
  # Of three nodes any will do for either.
  hosts = "--learners=2", "--learner_needs=CPU=1", "--samplers=1"

  def begin(steps, **settings):
    seconds = {"processes__seconds": 10}
    return start(cluster, folder, *hosts, train__steps=steps, **seconds, **settings)

  def learners():
    names = [f"--config.processes.index={index}" for index in range(2)]
    return [pid for name in names for pid in processes(folder, name)]

  def come_back(pids, deaths):
    """Both end, and two others go on from where they were: their process ids."""
    wait_for(lambda: not {*pids} & {*learners()}, driver, folder)
    step = steps_of(folder)[-1]
    wait_for(lambda: (steps_of(folder) or [0])[-1] > step, driver, folder)
    said = said_in(folder)
    assert said.count("learner ended by signal 9, and is started again") == deaths
    assert said.count("resumed  at step") == deaths
    return learners()

  driver = begin(100_000)
  try:
    wait_for(lambda: len(steps_of(folder)) > 5, driver, folder)
    pids = learners()
    raylets = [raylet(node) for node in (cluster.head_node, *of_samplers)]
    on = [[is_below(pid, node) for node in raylets] for pid in pids]
    assert len(on) == 2 and on[0] != on[1]

    # The process of one host: the other misses it, and both are started again.
    os.kill(pids[1], signal.SIGKILL)
    pids = come_back(pids, deaths=1)
    assert "no sign of life of process 1 of 2" in said_in(folder)

    # The actor of the one that leads, with its process.
    os.kill(parent_of(pids[0]), signal.SIGKILL)
    pids = come_back(pids, deaths=2)

    # A node: what ran there runs on another one.
    (lost, *_) = [x for x in of_samplers if any(is_below(p, raylet(x)) for p in pids)]
    cluster.remove_node(lost, allow_graceful=False)
    come_back(pids, deaths=3)

    # All are told to end, and a shorter run goes on to its end.
    driver.terminate()
    assert driver.wait(120) == os.EX_TEMPFAIL, said_in(folder)
    wait_until_gone(folder)
    step = steps_of(folder)[-1]
    assert f"stopped at step {step}" in said_in(folder)
    driver = begin(step + 3)
    assert driver.wait(300) == 0, said_in(folder)
    wait_until_gone(folder)
    assert steps_of(folder) == list(range(1, step + 4))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rollouts/lost"] == 0
    assert summary["rollouts/quarantined"] == 0

    # What the first refuses is not asked again.
    driver = begin(step + 3, seed=5)
    assert driver.wait(300) == 1, said_in(folder)
    assert "learner is given up on, with exit code 1" in said_in(folder)
    assert "ConfigChangedError" in said_in(folder)
    assert "started again" not in said_in(folder)
    wait_until_gone(folder)
  finally:
    driver.kill()
    driver.wait()


def test_the_actor_runs_on_nodes_without_its_file(tmp_path):
  sent = """import sys
sys.path.insert(0, sys.argv[1])
import ray, ray_process
sys.stdout.buffer.write(ray.cloudpickle.dumps(ray_process.Process))"""
  found = """import sys
import ray
actor = ray.cloudpickle.load(sys.stdin.buffer)("one", ["--version"], {}, ".")
print(*actor.run())"""

  def run(script, *argv, given=b""):
    return subprocess.run(
      [sys.executable, "-c", script, *argv],
      input=given,
      stdout=subprocess.PIPE,
      check=True,
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout

  said = run(found, given=run(sent, SCRIPT.parent)).decode()
  assert said.split()[-2:] == ["0", version("tis_jax")]


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--config=quickstrat"], "did you mean 'quickstart'"),
    (["--config=quickstart", "--config.train.step=3"], "did you mean 'steps'"),
    (["--config=quickstart", "--sampler_needs=CPU"], "'CPU' is not NAME=NUMBER"),
    (["--config=quickstart", "--learners=0"], "a learner is one process, or several"),
    (["--config=quickstart", "--address=127.0.0.1:9"], "no Ray cluster at 127.0.0.1:9"),
  ],
)
def test_what_is_wrong_is_said_before_anything_starts(argv, message, tmp_path):
  workdir = tmp_path / "run"
  where = [f"--workdir={workdir}", f"--store={url_of(tmp_path)}"]
  done = subprocess.run(
    [sys.executable, SCRIPT, *argv, *where],
    capture_output=True,
    text=True,
    timeout=120,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert done.returncode != 0
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not workdir.exists()
