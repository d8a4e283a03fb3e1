"""Adapters in PEFT's files, written and read back."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_decoder import PLAIN
from test_lora import LORA, random_adapter

from tis_jax import models


@pytest.fixture
def written(tmp_path):
  adapter = random_adapter(PLAIN)
  models.write_peft(tmp_path, PLAIN, adapter, LORA, base_model="some/model")
  return tmp_path, adapter


def edit(folder, **options):
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_an_adapter_comes_back(written):
  folder, adapter = written
  tensors = load_file(folder / "adapter_model.safetensors")
  a = "base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"
  want = models.flatten(adapter)["layers/attention/out/lora_a"][1].reshape(32, 3).T
  np.testing.assert_array_equal(tensors[a], want)
  assert len(tensors) == 2 * 2 * 7
  described = json.loads((folder / "adapter_config.json").read_text())
  assert described["r"] == 3 and described["lora_alpha"] == 6.0
  assert described["target_modules"][:2] == ["down_proj", "gate_proj"]
  lora, read = models.read_peft(folder, PLAIN)
  assert lora == LORA
  for name, leaf in models.flatten(read).items():
    np.testing.assert_array_equal(leaf, models.flatten(adapter)[name])


def test_targets_are_those_that_the_files_have(tmp_path):
  few = dataclasses.replace(LORA, targets=("query", "down"))
  models.write_peft(tmp_path, PLAIN, random_adapter(PLAIN, few), few)
  edit(tmp_path, target_modules="all-linear", use_rslora=True)
  lora, _ = models.read_peft(tmp_path, PLAIN)
  assert lora.targets == ("query", "down")
  assert lora.scale == pytest.approx(6.0 / 3**0.5)


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"use_dora": True}, "use_dora=True is not supported"),
    ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ({"rank_pattern": {"q_proj": 9}}, "rank_pattern"),
    ({"bias": "all"}, "bias='all'"),
    ({"r": 4}, "does not fit layers/attention/key/lora_a"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_plain_adapter_is_refused(written, option, message):
  edit(written[0], **option)
  with pytest.raises(ValueError, match=message):
    models.read_peft(written[0], PLAIN)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t, name: t.pop(name), "lacks .*q_proj"),
    (lambda t, name: t.update({"lm_head.lora_A.weight": t[name]}), "has lm_head"),
  ],
  ids=["missing", "unknown"],
)
def test_tensors_of_another_adapter_are_named(written, change, message):
  path = written[0] / "adapter_model.safetensors"
  tensors = load_file(path)
  change(tensors, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
  save_file(tensors, path)
  with pytest.raises(ValueError, match=message):
    models.read_peft(written[0], PLAIN)
