"""The Slurm script on a Slurm of two nodes here, which the test starts and ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import SETTINGS, wait_until_gone
from tiny_run import steps_of, url_of

from tis_jax.store import Store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "launch" / "slurm.sh"
STEPS = 600
# A job that is put back into the queue waits until its credential has expired.
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,bf_continue
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=all Nodes=n[0-1] Default=YES State=UP
"""

pytestmark = pytest.mark.slurm


def free_ports(count):
  sockets = [socket.socket() for _ in range(count)]
  for one in sockets:
    one.bind(("127.0.0.1", 0))
  ports = [one.getsockname()[1] for one in sockets]
  for one in sockets:
    one.close()
  return ports


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """`slurm("squeue", ...)`: what a command of the cluster says."""
  folder = tmp_path / "slurm"
  folder.mkdir()
  (folder / "state").mkdir()
  # Munge trusts a key in folders that others cannot write to.
  key = folder / "key"
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
  monkeypatch.setenv("XLA_FLAGS", "")
  cache = tmp_path / "compiled"
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
  (folder / "slurm.conf").write_text(
    CONFIG.format(
      host=socket.gethostname(),
      user=Path("/proc/self").owner(),
      folder=folder,
      ports=free_ports(3),
    )
  )
  where = os.environ["PATH"] + ":/usr/sbin"
  munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "seed-file")]
  munge += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file")]
  daemons = []

  def daemon(name, *argv):
    program = shutil.which(name, path=where)
    assert program, f"no {name}: apt-get install munge slurmctld slurmd slurm-client"
    with (folder / f"{name}.log").open("ab") as log:
      daemons.append(
        subprocess.Popen([program, *argv], stdout=log, stderr=subprocess.STDOUT)
      )

  def ask(*argv, **more):
    return subprocess.run(
      argv, text=True, capture_output=True, check=True, **more
    ).stdout

  try:
    daemon("munged", "--foreground", "--force", f"--key-file={key}", *munge)
    wait_until(lambda: (folder / "munge.socket").exists())
    daemon("slurmctld", "-D")
    for node in ("n0", "n1"):
      daemon("slurmd", "-D", "-N", node)
    wait_until(lambda: ask("sinfo", "--noheader", "-o%D %t").split() == ["2", "idle"])
    yield ask
  finally:
    for process in reversed(daemons):
      process.terminate()
    for process in reversed(daemons):
      process.wait(60)


def wait_until(condition, seconds=60.0, say=lambda: "nothing happened"):
  deadline = time.monotonic() + seconds
  while True:
    try:
      if condition():
        return
    except subprocess.CalledProcessError:
      pass  # The controller does not answer yet.
    assert time.monotonic() < deadline, say()
    time.sleep(0.2)


def test_a_job_loses_a_sampler_is_interrupted_and_comes_back(slurm, tmp_path):
  folder = tmp_path / "run"
  # As in an environment that was entered.
  commands = tmp_path / "bin"
  commands.mkdir()
  tis = commands / "tis"
  tis.write_text(f'#!/bin/bash\nexec {sys.executable} -m tis_jax "$@"\n')
  tis.chmod(0o755)
  submitted = slurm(
    *("sbatch", "--parsable", SCRIPT, "--config=quickstart"),
    *(f"--config.{name}={value}" for name, value in SETTINGS.items()),
    f"--config.train.steps={STEPS}",
    cwd=tmp_path,
    env=os.environ
    | {
      "PATH": f"{commands}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "STORE": url_of(folder),
      "WORKDIR": str(folder),
    },
  )
  job = submitted.strip()

  def said():
    return (tmp_path / f"tis-{job}.log").read_text(errors="replace")

  def state():
    shown = slurm("scontrol", "show", "job", job)
    return re.findall(r"JobState=(\w+)", shown)[0]

  try:
    wait_until(lambda: len(steps_of(folder)) > 5, 200, said)
    assert state() == "RUNNING"
    store = Store.open(url_of(folder))
    wait_until(lambda: set(store.heartbeats()) == {"slurm0", "slurm1"}, 60, said)
    pid, seq = store.heartbeats()["slurm1"]["pid"], store.next_seq("slurm1")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: store.next_seq("slurm1") > seq + 1, 120, said)
    assert store.heartbeats()["slurm1"]["pid"] != pid

    # What Slurm sends ahead of the end of a job's time.
    slurm("scancel", "--signal=TERM", job)
    wait_until(lambda: "the job goes back into the queue" in said(), 60, said)
    step = steps_of(folder)[-1]
    assert step < STEPS
    wait_until(lambda: state() == "PENDING", 60, said)
    wait_until_gone(folder)

    def runs_again():
      # A scheduler that sees nothing change looks only every few minutes.
      slurm("scontrol", "update", f"JobId={job}", "Comment=look")
      return state() == "RUNNING"

    wait_until(runs_again, 120, said)
    wait_until(lambda: state() == "COMPLETED", 300, said)
  finally:
    slurm("scancel", job)
  assert f"stopped at step {step};" in said()
  assert f"resumed  at step {step}" in said()
  assert steps_of(folder) == list(range(1, STEPS + 1))
  assert json.loads((folder / "summary.json").read_text())["rollouts/lost"] == 0
  wait_until_gone(folder)
