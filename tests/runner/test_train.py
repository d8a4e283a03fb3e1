"""Whole runs, small: sampler processes, learner, store, resumption."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from tiny_run import small, steps_of

from tis_jax.learner import load_batch
from tis_jax.runner import (
  ConfigChangedError,
  ConfigError,
  EvaluationPlan,
  evaluate_run,
  logs,
  read_config,
  train,
)
from tis_jax.runner.setup import build as build_parts


def test_a_run_trains_ends_with_figures_and_can_be_made_longer(tmp_path):
  summary = train(small(tmp_path, 2), tmp_path)
  assert summary["steps"] == 2
  assert summary["rollouts/trained"] == 16
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0
  assert np.isfinite([v for v in summary.values() if isinstance(v, float)]).all()
  ends = [summary["pass_at_1/base"], summary["pass_at_1/final"]]
  assert summary["pass_at_1/lowest"] == min(ends)
  assert json.loads((tmp_path / "summary.json").read_text()) == summary
  assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {
    "overview",
    "reward",
    "pass_at_1",
    "mismatch",
    "effective_sample_size",
    "weights",
  }
  batch, extra = load_batch(tmp_path / "batch.npz")
  gap = np.abs(extra["old_logp"] - batch.sampler_logp)[batch.mask]
  assert 0 < gap.mean() < 0.2  # bf16 and a version: a gap, and not a bug

  script = Path(__file__).parents[2] / "docs" / "make_metrics.py"
  groups = runpy.run_path(str(script))["GROUPS"]
  listed = {name for metrics in groups.values() for name in metrics}
  logged = {x for row in logs.read_metrics(tmp_path / "metrics.jsonl") for x in row}
  # What an evaluation, this chain's stage and the samplers' heartbeats add; and the
  # spread of each.
  apart = re.compile(r"step$|eval/|truncate/|rollouts/|sampler/|.*/(std|stderr)$")
  assert {name for name in logged if not apart.match(name)} == listed

  longer = train(small(tmp_path, 3), tmp_path)
  assert longer["steps"] == 3
  assert longer["rollouts/trained"] == 24
  assert longer["pass_at_1/base"] == summary["pass_at_1/base"]
  assert steps_of(tmp_path) == [1, 2, 3]
  report = evaluate_run(tmp_path, EvaluationPlan(prompts=8, samples=2))
  assert 0 <= report.scores["float32"].by_prompt["pass@1"].mean() <= 1

  with pytest.raises(ConfigChangedError, match="seed: 0 then, 1 now"):
    train(small(tmp_path, 3, seed=1), tmp_path)


@pytest.mark.learning
def test_a_critic_is_trained_beside_the_policy_and_resumed_with_it(tmp_path):
  changes = {
    "algorithm.advantage.name": "gae",
    "algorithm.advantage.gae.trace": 0.95,
    "algorithm.advantage.gae.whitened": True,
    "algorithm.critic.optimizer.learning_rate": 1e-3,
    "algorithm.critic.optimizer.warmup_steps": 1,
    "sampler.prompts_per_record": 16,
    "sampler.group_size": 4,
    "train.prompts_per_step": 16,
  }
  train(small(tmp_path, 6, **changes), tmp_path)
  summary = train(small(tmp_path, 12, **changes), tmp_path)
  assert summary["rollouts/trained"] == 12 * 64
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  errors = [row["value/error_squared"] for row in rows if "loss/value" in row]
  assert len(errors) == 12
  # Values begin at 0 and rewards are 0 or 1: half the error is the share of successes.
  assert np.mean(errors[-3:]) < 0.75 * errors[0]
  report = evaluate_run(tmp_path, EvaluationPlan(prompts=8, samples=2))
  assert len(report.scores["float32"].by_prompt["pass@1"]) == 8


@pytest.mark.slow
def test_gdpo_weighs_the_tasks_rewards_by_name(tmp_path):
  config = small(tmp_path, 1, **{"algorithm.advantage.name": "gdpo"})
  config.algorithm.advantage.gdpo.weights = {"number": 0.25, "correct": 1.0}
  train(config, tmp_path)
  batch, _ = load_batch(tmp_path / "batch.npz")
  correct, number = batch.named_rewards.T
  np.testing.assert_array_equal(correct, batch.rewards)
  assert (number >= correct).all() and number.max() == 1
  advantage = build_parts(read_config(config)).learner.algorithm.advantage
  assert advantage.keywords["weights"] == (1.0, 0.25)


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ({"correct": 1.0, "numbr": 1.0}, "did you mean 'number'"),
    ({"correct": 1.0}, "lack number, of task 'gsm8k_steps'"),
  ],
)
def test_weights_are_of_rewards_that_the_task_has(tmp_path, weights, message):
  config = small(tmp_path, 1, **{"algorithm.advantage.name": "gdpo"})
  config.algorithm.advantage.gdpo.weights = weights
  with pytest.raises(ConfigError, match=message):
    build_parts(read_config(config))


@pytest.mark.learning
def test_a_run_hands_long_answers_over(tmp_path):
  changes = {"sampler.native.interrupt_after": 2, "store.max_staleness": 3}
  summary = train(small(tmp_path, 12, **changes), tmp_path)
  assert summary["rollouts/trained"] == 12 * 8
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  # How many are, is a matter of who waits for whom.
  assert any("sampler/under_way" in row for row in rows)
  assert max(row.get("staleness/max", 0) for row in rows) <= 3


@pytest.mark.slow
def test_remax_has_the_samplers_answer_greedily_too(tmp_path):
  train(small(tmp_path, 2, **{"algorithm.advantage.name": "remax"}), tmp_path)
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  greedy = [row["reward/greedy"] for row in rows if "loss/total" in row]
  assert len(greedy) == 2
  # Whole answers to whole groups, and the base policy gets about half of them right.
  assert 0 < np.mean(greedy) <= 1
  batch, _ = load_batch(tmp_path / "batch.npz")
  pairs = batch.greedy_rewards.reshape(-1, 2)
  np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"optimizer.warmup_steps": 9}, "warmup_steps 9 is not in 0..2"),
    ({"algorithm.old_logp": "sampler"}, "bypass mode"),
    ({"sampler.temperature": 0.0}, "greedy rollouts have no ratio"),
    ({"sampler.precision": "float7"}, "float7"),
    (
      {"sampler.native.interrupt_after": 2, "store.max_staleness": 0},
      "max_staleness=0 allows none",
    ),
    (
      {"sampler.native.interrupt_after": 2, "data.task": "gsm8k_calculator"},
      "the task has conversations",
    ),
  ],
)
def test_impossible_settings_are_said_and_leave_the_workdir_free(
  change, message, tmp_path
):
  with pytest.raises(ConfigError, match=message):
    train(small(tmp_path, 2, **change), tmp_path)
  assert not (tmp_path / "config.json").exists()
  assert not (tmp_path / "store").exists()
