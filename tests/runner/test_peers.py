"""A peer's configuration in a run: taken whole, refused by name, in its words."""

import textwrap

import numpy as np
import pytest
from tiny_run import config_with, tiny

from tis_jax import compat, losses, runner
from tis_jax.runner import ConfigError, logs, read_config, train
from tis_jax.runner.overrides import override
from tis_jax.runner.peers import set_peer, summary

_THEIRS = """
  defaults: [_self_]
  data: {train_batch_size: 1024}
  algorithm:
    adv_estimator: grpo
    rollout_correction:
      rollout_is: token
      rollout_rs: seq_mean_k1
      rollout_rs_threshold: "0.5_2.0"
  actor_rollout_ref:
    actor:
      clip_ratio_high: 0.28
      loss_agg_mode: seq-mean-token-mean
      entropy_coeff: 0.01
      ppo_epochs: 2
      use_kl_loss: true
      kl_loss_coef: 0.002
"""
_SCRIPT = r"""
#!/usr/bin/env bash
set -x
# GRPO on GSM8K
python3 -m verl.trainer.main_ppo \
  algorithm.adv_estimator=rloo \
  algorithm.rollout_correction.rollout_is=sequence \
  actor_rollout_ref.actor.clip_ratio_high=0.28 "$@"
"""


def _algorithm(peer, **options):
  config = runner.algorithm_config()
  config.peer = peer
  with config.unlocked():
    config.peer_options = options
  return runner.algorithm_of(config)


def _file(folder, name, text):
  path = folder / name
  path.write_text(textwrap.dedent(text).lstrip())
  return path


def test_a_whole_config_is_the_algorithm(tmp_path):
  config = config_with()
  set_peer(config, "verl", _file(tmp_path, "their.yaml", _THEIRS))
  algorithm = read_config(config).algorithm
  assert losses.traits(algorithm.loss).name == "verl vanilla"
  assert losses.traits(algorithm.advantage).name == "verl grpo"
  assert (algorithm.epochs, algorithm.entropy_coefficient) == (2, 0.01)
  assert (algorithm.aggregation.mode, algorithm.aggregation.denominator) == (
    "sequence_mean",
    "accepted",
  )
  assert (algorithm.kl.coefficient, algorithm.kl.kind) == (0.002, "k3")
  assert (algorithm.old_logp, algorithm.baseline) == ("recompute", "accepted")
  assert algorithm.correct.weighs
  # What verl does not decide is the recipe's.
  assert algorithm.micro_batches == config_with().algorithm.micro_batches
  said = summary(config)
  assert compat.verl.VERSION in said and "not read: data" in said


def test_a_section_leaves_the_rest_to_the_recipe():
  algorithm = _algorithm("slime", use_tis=True, tis_batch_normalize=False)
  own = runner.algorithm_of(runner.algorithm_config())
  assert repr(algorithm.loss) == repr(own.loss)
  assert algorithm.aggregation == own.aggregation
  assert algorithm.correct.stages[0].name == "peer"


def test_a_script_with_the_command_line_is_a_config(tmp_path):
  config = config_with()
  set_peer(config, "verl", _file(tmp_path, "run.sh", _SCRIPT))
  assert config.algorithm.peer_options.algorithm.adv_estimator == "rloo"
  algorithm = read_config(config).algorithm
  assert losses.traits(algorithm.advantage).name == "verl rloo"


def test_options_stand_on_the_command_line():
  config = runner.default_config()
  override(
    config,
    [
      "--config.algorithm.peer=verl",
      "--config.algorithm.peer_options.algorithm.rollout_correction.rollout_is=token",
      "--config.algorithm.peer_options.rollout_is_threshold=3.0",
    ],
  )
  assert config.algorithm.peer_options.to_dict() == {
    "algorithm": {"rollout_correction": {"rollout_is": "token"}},
    "rollout_is_threshold": 3.0,
  }
  assert read_config(config).algorithm.correct.weighs


@pytest.mark.parametrize(
  ("peer", "options", "message"),
  [
    ("verl", {"rollout_iss": "token"}, "did you mean 'rollout_is'"),
    ("verll", {}, "did you mean 'verl'"),
    ("slime", {"use_tsi": True}, "did you mean 'use_tis'"),
    ("", {"rollout_is": "token"}, "algorithm.peer does not say whose"),
  ],
)
def test_a_wrong_key_is_said_with_the_nearest(peer, options, message):
  with pytest.raises(ConfigError, match=message):
    _algorithm(peer, **options)


@pytest.mark.parametrize(
  ("peer", "name", "text", "message"),
  [
    ("verll", None, "", "did you mean 'verl'"),
    ("", "their.yaml", "algorithm: {}", "needs --peer"),
    ("verl", "their.yaml", "algorithm: {", "is no YAML"),
    ("verl", "their.yaml", "- 1", "must be a mapping"),
    ("verl", "missing.yaml", None, "No such file"),
  ],
)
def test_a_file_that_is_no_config_is_said(peer, name, text, message, tmp_path):
  path = None if name is None else tmp_path / name
  if text is not None and path is not None:
    path.write_text(text)
  with pytest.raises(ConfigError, match=message):
    set_peer(config_with(), peer, path)


@pytest.mark.slow
def test_a_run_logs_the_peers_names_beside_the_native_ones(tmp_path):
  config = config_with(**tiny(tmp_path, train__steps=2, eval__samples=1))
  set_peer(config, "verl", _file(tmp_path, "their.yaml", _THEIRS))
  train(config, tmp_path / "run")
  rows = logs.read_metrics(tmp_path / "run" / "metrics.jsonl")
  steps = [row for row in rows if "loss/total" in row]
  assert len(steps) == 2
  for row in steps:
    # The whole batch is corrected at once, so verl's number is the chain's.
    pairs = {
      "rollout_corr/rollout_is_mean": "weight/mean",
      "rollout_corr/k3_kl": "mismatch/k3",
      "rollout_corr/rollout_rs_masked_fraction": "rejected/tokens",
    }
    for theirs, ours in pairs.items():
      np.testing.assert_allclose(row[theirs], row[ours], rtol=1e-3, atol=1e-6)
    assert row["mismatch/k3"] > 0
    assert {"actor/pg_clipfrac", "actor/ppo_kl", "kl/reference"} <= row.keys()
