"""A run of a mixture of experts whose learner sends tokens where its sampler did."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tokenizer import make
from test_decoder import MIXTURE
from tiny_run import config_with, tiny

from tis_jax import learner, models
from tis_jax.runner import ConfigError, logs, read_config, train
from tis_jax.runner.setup import build


@pytest.fixture
def source(tmp_path):
  """A directory with a mixture that has learnt nothing, and a tokenizer."""
  folder, tokenizer = tmp_path / "model", make("qwen2")
  config = dataclasses.replace(MIXTURE, vocab_size=263)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.0, 0.6, x.shape), x.dtype),
    models.abstract_params(config),
  )
  models.write_hugging_face(folder, config, params)
  tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
  return str(folder)


def test_a_run_that_records_no_experts_is_refused(source):
  with pytest.raises(ConfigError, match=r"set sampler.routed_experts=True"):
    build(read_config(config_with(algorithm__replay_experts=True)))
  config = config_with(
    model__source=source, algorithm__replay_experts=True, sampler__routed_experts=True
  )
  assert build(read_config(config)).learner.algorithm.replay_experts


@pytest.mark.slow
@pytest.mark.parametrize("replays", [True, False])
def test_a_run_replays_what_its_samplers_record(tmp_path, source, replays):
  config = config_with(
    **tiny(
      tmp_path,
      model__source=source,
      data__max_prompt_tokens=16,
      algorithm__replay_experts=replays,
      sampler__routed_experts=True,
      sampler__max_new_tokens=12,
      log__every=1,
      # All steps are by the params of the first, as near as makes no difference.
      optimizer__learning_rate=1e-9,
      train__steps=2,
      eval__samples=1,
    )
  )
  assert train(config, tmp_path)["rollouts/quarantined"] == 0
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  measured = [row["mismatch/abs_log_ratio"] for row in rows if "loss/total" in row][-1]
  batch, extra = learner.load_batch(tmp_path / "batch.npz")
  assert (batch.routed_experts is None) != replays
  decoder, params, _ = models.load(source)
  score = learner.make_score(
    models.decoder_graph(decoder), learner.make_mesh(data=8), replay=replays
  )
  logp = np.asarray(score(params, batch).logp)
  np.testing.assert_allclose(extra["old_logp"][batch.mask], logp[batch.mask], atol=1e-4)
  off = np.abs(logp - batch.sampler_logp)[batch.mask].mean()
  np.testing.assert_allclose(measured, off, rtol=0.01)
  if replays:
    # A bf16 router sends some tokens elsewhere than the learner's.
    own = learner.score(models.decoder_graph(decoder), params, batch).logp
    assert np.abs(own - batch.sampler_logp)[batch.mask].mean() > 1.1 * off
