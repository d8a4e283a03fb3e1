"""What Slurm and Kubernetes are to run is what our own commands understand."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tis_jax.runner.commands.train as train_command
import tis_jax.sampler.__main__ as sample_command
from tis_jax import cli
from tis_jax.runner import read_config

FOLDER = Path(__file__).parents[2] / "experiments" / "launch"
SLURM = FOLDER / "slurm.sh"
JOBSET = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
JOBS = {job["name"]: job for job in JOBSET["spec"]["replicatedJobs"]}


@pytest.fixture
def parsed(monkeypatch):
  """`parsed(argv)`: what a `tis` command line gives `train`, or a sampler."""
  got = []
  monkeypatch.setattr(train_command, "train", lambda *x: got.append(x) or {"steps": 1})
  monkeypatch.setattr(sample_command, "run_sampler", lambda *x: got.append(x))
  monkeypatch.setattr(sample_command.signal, "signal", lambda *_: None)

  def parsed(argv):
    cli.main(argv)
    return got.pop()

  return parsed


def spec_of(job):
  return JOBS[job]["template"]["spec"]


def pod_of(job):
  return spec_of(job)["template"]["spec"]


def typed(job):
  (container,) = pod_of(job)["containers"]
  return [*container["command"], *container["args"]]


# Slurm's own part, on this machine: a task is its command, and its number is 0. `tis`
# notes what was typed, tabs between; a learner ends with the code that the test wants.
COMMANDS = {
  "srun": (
    "while [[ $1 == --* ]]; do shift; done\n"
    'SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=${TASKS:-1} exec "$@"'
  ),
  "scontrol": 'echo "scontrol $*" >> "$NOTES"',
  "tis": (
    "IFS=$'\\t'\n"
    'echo "$*" >> "$NOTES"\n'
    '[[ $1 == train ]] && while ! grep -q ^sample "$NOTES"; do sleep 0.01; done\n'
    '[[ $1 == train ]] && exit "$LEARNER_CODE"\n'
    "[[ $LEARNER_CODE == 0 ]] || exec sleep 60"
  ),
}


@pytest.fixture
def slurm(tmp_path):
  """`slurm(learner's code, ...)`: (exit code of the job, what was typed in it)."""

  def slurm(learner_code, *argv, **environment):
    notes = tmp_path / "notes"
    notes.touch()
    for name, text in COMMANDS.items():
      path = tmp_path / "bin" / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(f"#!/bin/bash\n{text}\n")
      path.chmod(0o755)
    job = subprocess.Popen(
      ["bash", SLURM, *argv],
      env={
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "LEARNER_CODE": str(learner_code),
        "SLURM_JOB_ID": "17",
        "STORE": "file:///shared/run/store",
        "WORKDIR": "/shared/a run",
        **environment,
      },
      start_new_session=True,
    )
    try:
      code = job.wait(30)
    finally:
      # As Slurm does with all processes of a job.
      subprocess.run(["pkill", "-KILL", "-s", str(job.pid)], check=False)
    return code, notes.read_text().splitlines()

  return slurm


def test_the_slurm_job_runs_what_tis_understands(slurm, parsed):
  settings = ("--config=quickstart", "--config.train.steps=7")
  code, lines = slurm(0, *settings)
  assert code == 0
  (learner,) = [x for x in lines if x.startswith("train")]
  (sampler,) = [x for x in lines if x.startswith("sample")]
  config, workdir, _ = parsed(learner.split("\t"))
  settings = read_config(config)
  assert settings.store.url == "file:///shared/run/store"
  assert (settings.sampler.count, settings.train.steps) == (0, 7)
  assert settings.processes.count == 1
  assert str(workdir) == "/shared/a run"
  assert parsed(sampler.split("\t")) == (settings.store.url, "slurm0", None, 3600.0)


def test_a_learner_on_several_nodes_is_told_so(slurm, parsed):
  _, lines = slurm(0, "--config=quickstart", TASKS="4")
  (learner,) = [x for x in lines if x.startswith("train")]
  processes = read_config(parsed(learner.split("\t"))[0]).processes
  assert (processes.count, processes.index) == (4, 0)
  assert processes.coordinator == f"{socket.gethostname()}:20017"


@pytest.mark.parametrize(
  ("learner_code", "restarts", "again"),
  [(75, "0", True), (137, "19", True), (75, "20", False), (1, "0", False)],
)
def test_a_slurm_job_that_may_go_on_is_queued_again(
  slurm, learner_code, restarts, again
):
  code, lines = slurm(learner_code, SLURM_RESTART_COUNT=restarts)
  assert code == learner_code
  assert ("scontrol requeue 17" in lines) == again


def test_the_slurm_job_says_what_it_needs(slurm):
  code, lines = slurm(0, STORE="")
  assert code != 0
  assert lines == []


def test_the_slurm_script_is_bash():
  subprocess.run(["bash", "-n", SLURM], check=True)


def test_a_ray_fleet_without_ray_says_what_installs_it():
  # Without `site`, an interpreter has nothing but its own library.
  done = subprocess.run(
    [sys.executable, "-S", FOLDER / "ray_fleet.py", "--help"],
    capture_output=True,
    text=True,
    env={name: x for name, x in os.environ.items() if name != "PYTHONPATH"},
  )
  assert done.returncode == 1
  assert "has no ray: make ray installs it" in done.stderr
  assert "Traceback" not in done.stderr


def test_the_jobset_runs_what_tis_understands(parsed):
  learner, sampler = typed("learner"), typed("samplers")
  spec = spec_of("learner")
  assert spec["completionMode"] == "Indexed"
  learner = [word.replace("$(INDEX)", "0") for word in learner]
  assert learner[0] == sampler[0] == "tis"
  config, workdir, _ = parsed(learner[1:])
  settings = read_config(config)
  assert settings.sampler.count == 0
  assert settings.processes.count == spec["completions"] == spec["parallelism"]
  name = JOBSET["metadata"]["name"]
  assert settings.processes.coordinator == f"{name}-learner-0-0.{name}:1234"
  (mount,) = pod_of("learner")["containers"][0]["volumeMounts"]
  assert Path(mount["mountPath"]) in workdir.parents
  assert parsed(sampler[1:]) == (settings.store.url, "k8s$(INDEX)", None, 3600.0)
  # Time to save its state, between the two signals of an eviction.
  grace = pod_of("learner")["terminationGracePeriodSeconds"]
  assert grace >= settings.checkpoint.seconds_to_leave + 10


def test_only_what_a_learner_refuses_fails_the_jobset(monkeypatch):
  (rule,) = spec_of("learner")["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["operator"] == "In"
  refused = rule["onExitCodes"]["values"]
  assert (
    rule["onExitCodes"]["containerName"] == pod_of("learner")["containers"][0]["name"]
  )
  argv = ["--config=quickstart", "--workdir=/nowhere"]
  for settings, ends in (["--config.train.step=3"], True), ([], False):
    # An interrupted run has no summary.
    monkeypatch.setattr(train_command, "train", lambda *_: {})
    with pytest.raises(SystemExit) as raised:
      cli.main(["train", *argv, *settings])
    code = raised.value.code
    assert ((1 if isinstance(code, str) else code) in refused) == ends


@pytest.mark.ray
def test_the_slurm_script_has_no_faults_that_shellcheck_knows():
  # Installed beside Python, which need not be on the PATH.
  subprocess.run([Path(sys.executable).with_name("shellcheck"), SLURM], check=True)


@pytest.mark.ray
def test_the_jobset_follows_its_schema():
  # Made by Kubeflow from the OpenAPI descriptions of JobSet and of Kubernetes.
  from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import (
    JobsetV1alpha2JobSet,
  )

  # What the schema does not know would be left out.
  assert JobsetV1alpha2JobSet.from_dict(JOBSET).to_dict() == JOBSET
