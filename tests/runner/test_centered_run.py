"""A run with score centering: recorded, centred, and refused before it starts."""

import numpy as np
import pytest
from tiny_run import config_with, tiny

from tis_jax.learner import load_batch
from tis_jax.runner import ConfigError, logs, read_config, train
from tis_jax.runner.setup import build


def test_a_run_that_records_no_top_tokens_is_refused():
  with pytest.raises(ConfigError, match=r"set sampler.top_logprobs"):
    build(read_config(config_with(algorithm__score_centering=True)))
  with pytest.raises(ConfigError, match="gspo does more with it"):
    read_config(
      config_with(algorithm__score_centering=True, algorithm__loss__name="gspo")
    )
  with pytest.raises(ConfigError, match="top_logprobs must be at least 0"):
    read_config(config_with(sampler__top_logprobs=-1))


@pytest.mark.slow
def test_a_run_is_centred_with_what_its_samplers_record(tmp_path):
  config = config_with(
    **tiny(
      tmp_path,
      algorithm__score_centering=True,
      sampler__top_logprobs=6,
      sampler__temperature=0.9,
      sampler__precision="int8",
      train__steps=3,
      optimizer__schedule="constant",
      eval__samples=2,
    )
  )
  train(config, tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  steps = [row for row in rows if "loss/total" in row]
  assert len(steps) == 3
  for row in steps:
    assert 0.5 < row["centering/sampler_mass"] <= 1
    # int8 is near fp32, and not it.
    gap = row["centering/sampler_mass"] - row["centering/learner_mass"]
    assert 0 < abs(gap) < 0.05
    assert row["centering/missing"] == row["update/skipped"] == 0
    parts = row["loss/policy"] + row["loss/centering"] + row.get("loss/entropy", 0)
    np.testing.assert_allclose(row["loss/total"], parts, rtol=1e-4, atol=1e-6)
  assert any(row["loss/centering"] != 0 for row in steps)
  batch, extra = load_batch(tmp_path / "batch.npz")
  mask = batch.mask
  assert batch.top_tokens.shape == (*mask.shape, 6)
  # The taken token's log-prob is that of its place among the top ones.
  at = batch.top_tokens == batch.tokens[..., None]
  found = np.where(at, batch.top_logp, 0).sum(-1)[mask & at.any(-1)]
  np.testing.assert_allclose(found, batch.sampler_logp[mask & at.any(-1)], atol=1e-6)
  assert at.any(-1)[mask].mean() > 0.7
  assert (np.diff(batch.top_logp[mask], axis=-1) <= 0).all()
  assert "old_logp" in extra
