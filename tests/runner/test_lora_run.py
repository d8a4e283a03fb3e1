"""A run whose adapters alone train, are published and are kept."""

import json

import jax
import numpy as np
import pytest
from tiny_run import small, steps_of

from tis_jax import models
from tis_jax.models.hugging_face import read_hugging_face
from tis_jax.runner import (
  ConfigError,
  EvaluationPlan,
  evaluate_run,
  evaluate_store,
  export_run,
  read_config,
  train,
)
from tis_jax.runner.adapters import first_adapter
from tis_jax.runner.setup import assignment
from tis_jax.sampler import Assignment
from tis_jax.sampler.worker import base_of
from tis_jax.store import Store, StoreError, digest

LORA = {"model.lora.rank": 4, "sampler.precision": "int8", "sampler.native.head": ""}


@pytest.mark.learning
def test_a_run_trains_and_publishes_adapters_alone(tmp_path):
  summary = train(small(tmp_path, 2, **LORA), tmp_path)
  assert summary["rollouts/trained"] == 16
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0

  decoder, params, _ = models.load("builtin:arithmetic")
  lora = models.LoRA(rank=4)
  store = Store.open((tmp_path / "store").as_uri())
  manifest = store.latest()
  published = store.read_params(manifest)
  shapes = models.flatten(models.abstract_adapter(decoder, lora))
  assert {name: x.shape for name, x in published.items()} == {
    name: x.shape for name, x in shapes.items()
  }
  assert any(np.abs(x).max() > 0 for n, x in published.items() if n.endswith("lora_b"))
  base = digest(jax.device_get(models.flatten(params)))
  assert manifest.info["base"] == base

  # Longer, and read back: from the checkpoint and from the store, the same policy.
  train(small(tmp_path, 3, **LORA), tmp_path)
  assert steps_of(tmp_path) == [1, 2, 3]
  plan = EvaluationPlan(prompts=8, samples=2, temperature=0.0)
  (kept,), (given,) = (
    report.scores.values()
    for report in (
      evaluate_run(tmp_path, plan),
      evaluate_store(store.url, plan),
    )
  )
  np.testing.assert_array_equal(kept.by_prompt["pass@1"], given.by_prompt["pass@1"])

  # And the same one in other programs' files.
  export_run(tmp_path, tmp_path / "peft", adapter=True)
  read, adapter = models.read_peft(tmp_path / "peft", decoder)
  assert read == lora
  export_run(tmp_path, tmp_path / "whole")
  _, merged = read_hugging_face(tmp_path / "whole", lambda name, array: array)
  want = models.merge(params, adapter, lora)
  for name, array in models.flatten(merged).items():
    np.testing.assert_allclose(array, models.flatten(want)[name], atol=1e-7)
  moved = (
    models.flatten(want)["layers/mlp/up"] - models.flatten(params)["layers/mlp/up"]
  )
  assert np.abs(moved).max() > 0


def test_beside_other_params_adapters_are_refused(tmp_path):
  params = models.load("builtin:arithmetic")[1]
  told = digest(jax.device_get(models.flatten(params)))
  settings = read_config(small(tmp_path, 1, **LORA))
  asked = assignment(settings, told)
  assert base_of(asked, params).digest == told
  with pytest.raises(StoreError, match="others here"):
    base_of(asked, jax.tree.map(lambda x: x + 1, params))
  whole = read_config(small(tmp_path, 1))
  assert base_of(assignment(whole), params) is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"algorithm.advantage.name": "gae"}, "takes the values of a critic"),
    ({"model.lora.targets": ("quary",)}, "model.lora.*query"),
    ({"model.lora.rank": 0, "model.adapter": "mine"}, "no adapter trains"),
  ],
)
def test_what_adapters_do_not_go_with_is_refused(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    read_config(small(tmp_path, 1, **LORA | changes))


def test_settings_of_adapters_survive_the_store(tmp_path):
  settings = read_config(small(tmp_path, 1, **LORA))
  assert settings.model.lora == models.LoRA(rank=4)
  told = assignment(settings, "0123")
  assert Assignment.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_a_run_may_begin_with_an_adapter_of_peft(tmp_path):
  decoder = models.load("builtin:arithmetic")[0]
  lora = models.LoRA(rank=4)
  draw = np.random.default_rng(0)
  adapter = jax.tree.map(
    lambda x: np.float32(draw.standard_normal(x.shape)),
    models.abstract_adapter(decoder, lora),
  )
  models.write_peft(tmp_path / "mine", decoder, adapter, lora)
  given = LORA | {"model.adapter": str(tmp_path / "mine")}
  read = first_adapter(read_config(small(tmp_path, 1, **given)), decoder)
  jax.tree.map(np.testing.assert_array_equal, read, adapter)
  other = read_config(small(tmp_path, 1, **given | {"model.lora.alpha": 8.0}))
  with pytest.raises(ValueError, match=r"alpha 32.0: set model.lora.alpha"):
    first_adapter(other, decoder)
