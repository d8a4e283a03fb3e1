"""Configs become algorithms, and what is wrong with them is said."""

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm
from ml_collections import ConfigDict

from tis_jax import learner, losses, runner
from tis_jax.advantages import ESTIMATORS
from tis_jax.corrections import STAGES, chain, reject, truncate, veto
from tis_jax.logprobs import Sampling


def test_stages_come_in_order_with_their_settings():
  config = runner.algorithm_config()
  config.correction.stages = ("veto", "reject", "reject_2", "truncate")
  config.correction.reject.high = 2.0
  config.correction.reject_2 = ConfigDict({"high": 1.1, "level": "geometric"})
  config.correction.truncate.high = 3.0
  got = runner.algorithm_of(config).correct
  want = chain(
    veto(), reject(2.0), reject(1.1, level="geometric"), truncate(3.0), metrics="core"
  )
  assert got == want


def test_a_command_line_writes_stages_as_one_string():
  written = make_algorithm(correction__stages=("veto, truncate",)).correct
  assert written == chain(veto(), truncate())
  assert make_algorithm(correction__stages=("",)).correct.stages == ()


def test_defaults_are_those_of_the_functions():
  algorithm = runner.algorithm_of({})
  assert algorithm.loss.func is losses.ppo
  assert algorithm.loss.keywords == losses.ppo.__kwdefaults__
  config = runner.algorithm_config()
  assert {"truncate", "veto", "reject", "zero_outside"} <= STAGES.keys()
  for name in STAGES:
    assert name in config.correction
  json.loads(config.to_json())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"correction": {"truncate": {"hihg": 2}}}, "did you mean 'high'"),
    ({"correction": {"truncat": {}}}, "no setting 'truncat'; did you mean 'truncate'"),
    ({"correction": {"stages": ("vetoo",)}}, "'vetoo'; did you mean 'veto'"),
    (
      {"correction": {"stages": ("veto_2",)}},
      "algorithm.correction.veto_2 is not there",
    ),
    ({"los": {}}, "algorithm has no setting 'los'; did you mean 'loss'"),
    ({"loss": {"name": "grpo"}}, "algorithm.loss.name has no setting 'grpo'"),
    ({"loss": {"name": "dro"}}, "algorithm.loss.dro.beta has no default"),
    ({"kl": {"kin": "k1"}}, "did you mean 'kind'"),
    ({"kl": {"kind": "k4"}}, "kl: kind must be one of"),
    ({"advantage": {"name": "gropo"}}, "did you mean 'grpo'"),
    ({"aggregation": {"mode": "sequence_sum_constant"}}, "needs a length"),
    ({"temperature": 0.5}, "algorithm has no setting 'temperature'"),
    ({"mini_batches": 0}, "mini_batches must be at least 1"),
    ({"old_logp": "current", "epochs": 2}, "exact for one update a batch"),
    ({"old_logp": "sampler"}, "bypass mode"),
    ({"loss": {"name": "clip_cov"}, "micro_batches": 2}, "change what it selects"),
    ({"loss": {"name": "dppo"}}, "already multiplies by the ratio to the sampler"),
    (
      {"old_logp": "current", "baseline": "accepted"},
      "no rejections to leave out",
    ),
    (
      {
        "old_logp": "current",
        "micro_batches": 2,
        "aggregation": {"denominator": "accepted"},
      },
      "cannot count what the others accept",
    ),
    (
      {
        "old_logp": "current",
        "micro_batches": 2,
        "correction": {"stages": ("truncate", "normalize")},
      },
      r"\['normalize'\] take statistics of the whole batch",
    ),
    (
      {
        "baseline": "accepted",
        "correction": {
          "stages": ("reject_negative_divergence",),
          "reject_negative_divergence": {"high": 0.1},
        },
      },
      "reject_negative_divergence needs the advantages",
    ),
    (
      {
        "old_logp": "sampler",
        "mini_batches": 2,
        "loss": {"name": "reinforce"},
        "correction": {"stages": ("truncate", "normalize")},
      },
      r"\['normalize'\] take statistics of the whole batch",
    ),
    ({"old_logp": "current", "kl": {"placement": "reward"}}, "kl.placement='reward'"),
    (
      {"advantage": {"name": "gdpo"}, "overlong": {"buffer": 2}},
      "gdpo takes no rewards, which overlong.buffer",
    ),
    (
      {"old_logp": "current", "advantage": {"name": "optimal_token_baseline"}},
      "needs logp and sum_squared_probs of the policy before the update",
    ),
    (
      {
        "advantage": {"name": "optimal_token_baseline"},
        "correction": {
          "stages": ("reject_negative_divergence", "truncate"),
          "reject_negative_divergence": {"high": 0.1},
        },
      },
      "needs the advantages and optimal_token_baseline the correction's weight",
    ),
  ],
)
def test_what_is_wrong_is_said(changes, message):
  with pytest.raises(ValueError, match=message):
    runner.algorithm_of(changes)


def test_a_loss_of_your_own_is_held_to_what_it_says():
  @losses.policy_loss(selects=True)
  def ranked(logp, advantages, mask=None):
    return -advantages * logp, {}

  def critical(logp, advantages, values):
    return values - advantages * logp, {}

  algorithm = make_algorithm()
  with pytest.raises(ValueError, match="ranked ranks a token among the others"):
    dataclasses.replace(algorithm, loss=ranked, micro_batches=2)
  with pytest.raises(ValueError, match="critical needs values, which an update does"):
    dataclasses.replace(algorithm, loss=critical)
  dataclasses.replace(algorithm, loss=ranked)


def test_an_estimator_of_your_own_is_held_to_what_it_takes():
  def curious(rewards, tool_calls):
    return rewards - tool_calls

  with pytest.raises(ValueError, match="curious needs tool_calls, which"):
    dataclasses.replace(make_algorithm(), advantage=curious)


def test_the_samplers_temperature_must_be_the_learners(tiny):
  algorithm, mesh = make_algorithm(), tiny.meshes["one"]

  def build(sampling):
    return learner.make_update(
      tiny.graph, algorithm, tiny.optimizer, mesh, sampling=sampling
    )

  with pytest.raises(ValueError, match="is no policy's ratio"):
    build(Sampling(temperature=0.7))
  with pytest.raises(ValueError, match="greedy"):
    build(Sampling(temperature=0.0))


def test_a_record_that_is_not_enough_is_refused_at_the_first_batch(tiny, batch):
  update = learner.make_update(
    tiny.graph,
    make_algorithm(),
    tiny.optimizer,
    tiny.meshes["one"],
    sampling=Sampling(top_p=0.9, logprobs="processed"),
  )
  state = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["one"])
  with pytest.raises(ValueError, match="neither kept_mass nor kept_tokens"):
    jax.eval_shape(update, state, batch, np.int32(VERSION))
  kept = np.broadcast_to(batch.tokens[..., None], (*batch.tokens.shape, 3))
  with_kept = batch._replace(kept_tokens=kept)
  jax.eval_shape(update, state, with_kept, np.int32(VERSION))
  with pytest.raises(ValueError, match="the batch records what sampling kept"):
    jax.eval_shape(tiny.update(), state, with_kept, np.int32(VERSION))


LOSSES = sorted(losses.POLICY_LOSSES)


@pytest.mark.parametrize("index", range(len(LOSSES)))
def test_every_loss_advantage_and_stage_traces(tiny, batch, index):
  """Each loss once, with the advantages and the stages dealt out among them."""
  loss, stages = LOSSES[index], sorted(STAGES)
  advantage = sorted(ESTIMATORS)[index % len(ESTIMATORS)]
  mine = [stages[i] for i in range(index, len(stages), len(LOSSES))]
  takes_weights = not losses.uses_sampler_ratio(losses.POLICY_LOSSES[loss])
  settings = {
    "loss": {"name": loss, "dro": {"beta": 1.0}},
    "advantage": {"name": advantage, "pass_at_k": {"k": 2}},
    "correction": {
      "stages": ("truncate",) if takes_weights else (),
      "metrics": "none",
    },
  }
  algorithm = runner.algorithm_of(settings)
  rewards = batch.rewards
  batch = batch._replace(
    greedy_rewards=rewards,
    named_rewards=np.stack([rewards, rewards], 1),
    turn_rewards=np.stack([rewards, rewards], 1),
  )
  for stage in [None, *mine]:
    if stage is not None:
      correct = _with_stage(stage)
      algorithm = dataclasses.replace(make_algorithm(), correct=correct)
    parts = (tiny.optimizer, tiny.meshes["one"])
    critic = {"critic_optimizer": tiny.optimizer if algorithm.needs_critic else None}
    update = learner.make_update(tiny.graph, algorithm, *parts, **critic)
    state = learner.abstract_state(tiny.graph, *parts, **critic)
    out, _ = jax.eval_shape(update, state, batch, np.int32(VERSION))
    assert jax.tree.map(np.shape, out) == jax.tree.map(np.shape, state)


def _with_stage(name):
  """A chain that holds the stage, after a weight where it scales one."""
  required = {
    argument: 2
    for argument, parameter in inspect.signature(STAGES[name]).parameters.items()
    if parameter.default is inspect.Parameter.empty
  }
  stage = STAGES[name](**required | ({"high": 2.0} if name == "reject" else {}))
  before = [truncate(2.0)] if stage.makes == "scale" else []
  return chain(*before, stage, metrics="none")
