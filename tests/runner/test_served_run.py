"""A run whose sampler drives a server: SGLang's protocol, spoken by a test's own."""

import json

import numpy as np
import pytest
from sglang_server import SGLangServer
from tiny_run import config_with, tiny

from tis_jax.runner import SamplerFailedError, logs, train


@pytest.fixture
def server():
  server = SGLangServer()
  yield server
  server.close()


def served(tmp_path, server, **changes):
  return config_with(
    **tiny(
      tmp_path,
      sampler__engine="sglang",
      sampler__sglang__url=server.url,
      sampler__sglang__folder=str(tmp_path / "params"),
      sampler__precision="float32",
      sampler__temperature=0.9,
      train__steps=3,
      optimizer__schedule="constant",
      eval__samples=2,
      **changes,
    )
  )


@pytest.mark.slow
def test_a_run_is_sampled_by_a_server(tmp_path, server):
  train(served(tmp_path, server), tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  steps = [row for row in rows if "mismatch/k3" in row]
  assert len(steps) == 3
  # Both sides compute in fp32; what is between them is a version.
  assert steps[0]["mismatch/k3"] < 1e-9 and steps[0]["staleness/mean"] == 0
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["rollouts/trained"] == 3 * 8
  assert summary["rollouts/quarantined"] == summary["rollouts/lost"] == 0
  assert server.calls["/update_weights_from_disk"] >= 2
  assert "sglang, float32" in (tmp_path / "samplers" / "local0.log").read_text()
  assert not list((tmp_path / "params").rglob("*.safetensors"))
  with np.load(tmp_path / "batch.npz") as batch:
    assert np.isfinite(batch["sampler_logp"][batch["mask"]]).all()


@pytest.mark.chaos
def test_a_server_of_another_model_trains_nothing(tmp_path, server):
  server.faults = {"another_model"}
  with pytest.raises(SamplerFailedError, match=r"WrongParamsError: .*another model"):
    train(served(tmp_path, server), tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  assert not [row for row in rows if "mismatch/k3" in row]
