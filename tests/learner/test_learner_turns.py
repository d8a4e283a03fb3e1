"""Conversations in an update: their turns reach the correction and the advantage."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm, policy_gradient_step, scores

from tis_jax import learner
from tis_jax.models import flatten
from tis_jax.rollouts import ABORTED, turn_ids

MOST = 3


@pytest.fixture(scope="module")
def conversations(batch):
  """The batch with holes in many rows, and a reward for each turn."""
  rng = np.random.default_rng(4)
  mask = batch.mask.copy()
  mask[:24, 2] = False  # splits those that are long enough
  turns = turn_ids(mask).max(axis=1) + 1
  assert (turns > 1).sum() > 8
  per_turn = rng.integers(0, 3, (len(mask), MOST)).astype(np.float32)
  per_turn[np.arange(MOST) >= turns[:, None]] = np.nan
  rewards = np.nansum(per_turn, axis=1).astype(np.float32)
  return batch._replace(mask=mask, turn_rewards=per_turn, rewards=rewards)


def turn_weights(old_logp, batch, cap):
  """Truncated products of each turn, by loops."""
  weight = np.zeros(batch.mask.shape)
  turns = turn_ids(batch.mask)
  for row in range(len(turns)):
    for turn in range(turns[row].max() + 1):
      own = turns[row] == turn
      gap = np.float64(old_logp[row, own]) - batch.sampler_logp[row, own]
      weight[row, own] = min(np.exp(gap.sum()), cap)
  return weight


def turn_advantages(batch):
  """Rewards to go against the same turn of the siblings, by loops."""
  turns = turn_ids(batch.mask)
  held = batch.mask.any(axis=1)
  found = np.zeros(batch.mask.shape)
  for row, place in np.argwhere(batch.mask):
    turn = turns[row, place]
    same = held & (batch.group_ids == batch.group_ids[row])
    to_go = [
      np.nansum(np.float64(batch.turn_rewards[i, turn:]))
      for i in np.flatnonzero(same)
      if np.isfinite(batch.turn_rewards[i, turn])
    ]
    own = np.nansum(np.float64(batch.turn_rewards[row, turn:]))
    if len(to_go) > 1:
      found[row, place] = (own - np.mean(to_go)) / (np.std(to_go, ddof=1) + 1e-6)
  return found


def step(tiny, batch, mesh="one", **settings):
  algorithm = make_algorithm(**settings)
  update = learner.make_update(tiny.graph, algorithm, tiny.optimizer, tiny.meshes[mesh])
  return jax.device_get(update(tiny.state(mesh), batch, np.int32(VERSION)))


def assert_same_params(got, want):
  got, want = flatten(got), flatten(want)
  for name, x in want.items():
    np.testing.assert_allclose(got[name], x, 2e-4, 2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mesh", "settings"),
  [
    ("one", {}),
    ("2x2x2", {"micro_batches": 2}),
    ("one", {"old_logp": "current", "micro_batches": 2}),
  ],
)
def test_the_level_turn_weighs_each_turn_of_a_response(
  tiny, conversations, mesh, settings
):
  settings = {
    "correction__stages": ("truncate",),
    "correction__truncate": {"high": 1.5, "level": "turn"},
    **settings,
  }
  state, metrics = step(tiny, conversations, mesh, **settings)
  old_logp, _ = scores(tiny.graph, tiny.params, conversations)
  weight = turn_weights(np.asarray(old_logp), conversations, 1.5)
  whole = np.asarray(old_logp) - conversations.sampler_logp
  whole = np.exp(np.where(conversations.mask, whole, 0).sum(1, keepdims=True))
  assert np.abs(weight - np.minimum(whole, 1.5))[conversations.mask].max() > 0.1
  # `policy_gradient_step` weighs by tokens: hand it what that lacks.
  by_token = np.where(
    conversations.mask,
    np.minimum(np.exp(np.asarray(old_logp) - conversations.sampler_logp), 2.0),
    1.0,
  )
  from learner_oracle import advantages

  found = advantages(conversations)[:, None] * weight / by_token
  params, loss, _ = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, conversations, found
  )
  np.testing.assert_allclose(metrics["loss/total"], loss, 2e-4, 1e-5)
  assert_same_params(state.params, params)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mesh", "settings"),
  [("one", {}), ("2x2x2", {"micro_batches": 2}), ("1x4x2", {"old_logp": "current"})],
)
def test_rewards_of_turns_train_the_turns(tiny, conversations, mesh, settings):
  state, metrics = step(
    tiny, conversations, mesh, advantage__name="turn_grpo", **settings
  )
  params, loss, _ = policy_gradient_step(
    tiny.graph,
    tiny.params,
    tiny.optimizer,
    conversations,
    turn_advantages(conversations),
  )
  np.testing.assert_allclose(metrics["loss/total"], loss, 2e-4, 1e-5)
  assert_same_params(state.params, params)


def test_a_rejected_token_ends_no_turn(tiny, conversations):
  """The turns of a baseline are those that were sampled, whatever still trains."""
  settings = {
    "advantage__name": "turn_grpo",
    "correction__stages": ("reject",),
    "correction__reject": {"high": 1.6, "level": "token"},
    "baseline": "accepted",
    "correction__metrics": "none",
  }
  old_logp, _ = scores(tiny.graph, tiny.params, conversations)
  gap = np.asarray(old_logp) - conversations.sampler_logp
  trains = conversations.mask & (np.abs(gap) <= np.log(1.6))
  split = turn_ids(trains).max(axis=1) > turn_ids(conversations.mask).max(axis=1)
  assert split.any()
  # Every row keeps a token in the baseline here, or the loops would have to know.
  whole = trains.any(axis=1)
  found = turn_advantages(
    conversations._replace(
      mask=conversations.mask & whole[:, None],
      turn_rewards=np.where(whole[:, None], conversations.turn_rewards, np.nan),
    )
  )
  _, metrics = step(tiny, conversations, **settings)
  want = -np.where(trains, found, 0).sum() / conversations.mask.sum()
  np.testing.assert_allclose(metrics["loss/total"], want, 2e-4, 1e-5)


def test_without_rewards_of_turns_the_estimator_says_what_it_lacks(tiny, batch):
  with pytest.raises(ValueError, match="turn_grpo needs turn_rewards"):
    step(tiny, batch, advantage__name="turn_grpo")


def record(batch, rows):
  taken = learner.take_rows(batch, rows)
  return SimpleNamespace(**taken._asdict())


def test_rewards_of_turns_come_from_records_of_any_width(conversations):
  one, two = record(conversations, slice(0, 4)), record(conversations, slice(4, 8))
  two.turn_rewards = np.concatenate(
    [two.turn_rewards, np.full((4, 2), np.nan, np.float32)], 1
  )
  two.finish_reasons = np.int8([0, ABORTED, 0, 0])
  two.turn_rewards[1, 0] = 7.0
  joined = learner.from_rollouts([one, two])
  assert joined.turn_rewards.shape == (8, MOST + 2)
  assert joined.turn_rewards.dtype == np.float32
  np.testing.assert_array_equal(joined.turn_rewards[:4, :MOST], one.turn_rewards)
  assert np.isnan(joined.turn_rewards[5]).all()
  padded = learner.pad(joined, rows=9, response_length=8)
  assert padded.turn_rewards.shape == (9, MOST + 2)
  assert np.isnan(padded.turn_rewards[8]).all()
  plain = record(conversations._replace(turn_rewards=None), slice(0, 4))
  with pytest.raises(ValueError, match="some rollouts record turn_rewards"):
    learner.from_rollouts([one, plain])
