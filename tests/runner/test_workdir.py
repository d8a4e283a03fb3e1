import json

import pytest
from ml_collections import ConfigDict

from tis_jax.runner.workdir import ConfigChangedError, check_config, keep_config


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
