import errno
import fcntl
import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from tis_jax.runner import default_config
from tis_jax.runner.workdir import (
  ConfigChangedError,
  WorkdirInUseError,
  check_config,
  identify,
  keep_config,
  locked,
)


def settings(**changes):
  config = ConfigDict({"seed": 0, "train": {"steps": 10, "prompts": 4}})
  config.update_from_flattened_dict(changes)
  return config


def test_the_resolved_config_is_in_the_workdir(tmp_path):
  keep_config(settings(), tmp_path)
  assert json.loads((tmp_path / "config.json").read_text()) == {
    "seed": 0,
    "train": {"steps": 10, "prompts": 4},
  }


def test_a_longer_run_goes_on(tmp_path):
  keep_config(settings(), tmp_path)
  longer = settings(**{"train.steps": 20})
  check_config(longer, tmp_path)
  keep_config(longer, tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 20


def test_other_settings_are_refused_and_named(tmp_path):
  keep_config(settings(), tmp_path)
  with pytest.raises(ConfigChangedError, match=r"train.prompts: 4 then, 8 now"):
    check_config(settings(**{"train.prompts": 8}), tmp_path)


def test_a_setting_that_is_newer_than_the_run_counts_as_its_default(tmp_path):
  old = default_config()
  with old.unlocked():
    del old.sampler["top_logprobs"]
  keep_config(old, tmp_path)
  config = default_config()
  check_config(config, tmp_path)
  config.sampler.top_logprobs = 5
  with pytest.raises(ConfigChangedError, match=r"sampler.top_logprobs: 0 then, 5 now"):
    check_config(config, tmp_path)


_HOLD = """
import sys, time
from pathlib import Path
from tis_jax.runner.workdir import locked
with locked(Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_workdir_has_one_learner_and_the_lock_of_a_dead_one_is_none(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout.readline() == "held\n"
    with (
      pytest.raises(WorkdirInUseError, match=f"{tmp_path} .* process {holder.pid} on"),
      locked(tmp_path),
    ):
      pass
  finally:
    holder.kill()
    holder.wait()
  # Not the process but the learner has it.
  with locked(tmp_path), pytest.raises(WorkdirInUseError), locked(tmp_path):
    pass
  with locked(tmp_path):
    pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  said = []
  with locked(tmp_path, said.append):
    pass
  assert said[0].startswith(f"{tmp_path} cannot be locked (No locks available)")


def test_a_run_that_never_began_may_go_to_another_store(tmp_path):
  first = identify("file:///srv/taken/", tmp_path)
  other = identify("file:///srv/free/", tmp_path)
  assert (first.run, other.store) == (other.run, "file:///srv/free/")
  default = identify("", tmp_path)
  assert default.where and identify("", tmp_path) == default
  keep_config(settings(), tmp_path)  # Its store is open.
  assert identify("file:///srv/free/", tmp_path) == default
