"""A config that truncates sampling and nothing else: exact ratios, or a refusal."""

import numpy as np
import pytest
from tiny_run import config_with, tiny

from tis_jax.learner import load_batch
from tis_jax.runner import ConfigError, logs, read_config, train
from tis_jax.runner.setup import build


@pytest.mark.parametrize(
  "sampler",
  [{"sampler__top_p": 0.9, "sampler__kept_tokens": 0},
   {"sampler__top_k": 5, "sampler__kept_tokens": 4}],
)  # fmt: skip
def test_a_record_that_can_hold_no_set_is_refused_before_the_run(sampler):
  with pytest.raises(ConfigError, match=r"kept_tokens=[04].*inexact='train'"):
    build(read_config(config_with(**sampler)))
  build(read_config(config_with(**sampler, algorithm__inexact="train")))


def test_inexact_ratios_are_left_out_or_trained_on_and_nothing_else():
  with pytest.raises(ConfigError, match="algorithm: inexact must be one of"):
    read_config(config_with(algorithm__inexact="ignore"))


@pytest.mark.slow
def test_a_run_with_top_p_trains_on_exact_ratios(tmp_path):
  config = config_with(
    **tiny(
      tmp_path,
      sampler__top_p=0.8,
      sampler__precision="float32",
      train__steps=2,
      optimizer__schedule="constant",
      eval__samples=2,
      # Every rollout is of the params that it trains.
      store__max_staleness=0,
    )
  )
  train(config, tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  steps = [row for row in rows if "loss/total" in row]
  assert len(steps) == 2
  for row in steps:
    assert row["support/inexact"] == row["tokens/missing"] == 0
    assert 0.8 <= row["support/kept_mass"] < 1
    np.testing.assert_allclose([row["weight/raw_max"], row["weight/raw_min"]], 1, 1e-4)
  batch, extra = load_batch(tmp_path / "batch.npz")
  assert batch.kept_tokens.shape[-1] == 17
  gap = (extra["old_logp"] - batch.sampler_logp)[batch.mask]
  np.testing.assert_allclose(gap, 0, atol=1e-4)
