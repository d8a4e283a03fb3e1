"""Advantages of turns against plain loops, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.advantages import grpo, turn_grpo

ROWS, TOKENS, MOST = 8, 9, 4
RNG = np.random.default_rng(0)
IDS = np.array([4, -1, 4, 4, -1, 7, -1, 4], np.int32)
# How many tokens each turn has, and the hole behind it is one wide.
TURNS = [[2, 1, 2], [4], [1, 1, 1, 1], [3, 2], [1, 2], [2, 2], [], [1]]


def layout():
  turns = np.full((ROWS, TOKENS), -1, np.int32)
  rewards = np.full((ROWS, MOST), np.nan, np.float32)
  for row, lengths in enumerate(TURNS):
    place = 0
    for turn, length in enumerate(lengths):
      turns[row, place : place + length] = turn
      rewards[row, turn] = RNG.normal()
      place += length + 1
  return rewards, turns


REWARDS, TURN_IDS = layout()


def loop(rewards, discount=1.0, normalize=True, counted=None, singleton="zero"):
  """The definition: row by row, turn by turn."""
  counted = np.ones(ROWS, bool) if counted is None else counted
  to_go = np.full(rewards.shape, np.nan)
  for row in range(ROWS):
    later = 0.0
    for turn in reversed(range(len(TURNS[row]))):
      later = np.float64(rewards[row, turn]) + discount * later
      to_go[row, turn] = later
  out = np.zeros(TURN_IDS.shape)
  for row, place in np.argwhere(TURN_IDS >= 0):
    turn = TURN_IDS[row, place]
    same = [j for j in range(ROWS) if IDS[j] == IDS[row] and counted[j]]
    group = np.array([to_go[j, turn] for j in same if np.isfinite(to_go[j, turn])])
    found = to_go[row, turn] if singleton == "raw" else 0.0
    if len(group) > 1:
      found = to_go[row, turn] - group.mean()
      if normalize:
        spread = np.sqrt(((group - group.mean()) ** 2).sum() / (len(group) - 1))
        found /= spread + 1e-6
    out[row, place] = found
  return out


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"discount": 0.7},
    {"normalize": False},
    {"normalize": False, "singleton": "raw"},
  ],
)
def test_each_turn_is_compared_with_the_same_turn_of_its_siblings(settings):
  got = jax.jit(lambda r: turn_grpo(r, TURN_IDS, IDS, **settings))(REWARDS)
  np.testing.assert_allclose(got, loop(REWARDS, **settings), 2e-5, 1e-6)


def test_rows_that_do_not_count_leave_the_baseline_and_may_hold_anything():
  counted = np.arange(ROWS) != 2
  want = loop(REWARDS, counted=counted)
  got = turn_grpo(REWARDS, TURN_IDS, IDS, baseline_mask=counted)
  np.testing.assert_allclose(got, want, 2e-5, 1e-6)
  for garbage in (np.inf, 1e30):
    dirty = REWARDS.copy()
    dirty[2, :4] = garbage
    others = np.asarray(turn_grpo(dirty, TURN_IDS, IDS, baseline_mask=counted))
    np.testing.assert_allclose(others[counted], want[counted], 2e-5, 1e-6)


def test_with_one_turn_a_row_it_is_grpo():
  rewards = RNG.normal(size=(ROWS, 1)).astype(np.float32)
  got = turn_grpo(rewards, np.zeros((ROWS, 1), np.int32), IDS)
  np.testing.assert_allclose(got[:, 0], grpo(rewards[:, 0], IDS), 1e-5, 1e-6)


def test_equal_rewards_are_no_signal_whatever_their_rounding():
  for rows in range(2, 12):  # a seventh of seven times 0.1 is not 0.1
    rewards = np.full((rows, 2), 0.1, np.float32)
    turns = np.broadcast_to(np.int32([0, 1]), (rows, 2))
    assert not np.asarray(turn_grpo(rewards, turns, np.zeros(rows, np.int32))).any()


def test_what_a_turn_earned_is_not_credited_to_the_turns_behind_it():
  rewards = np.float32([[1, 0], [0, 0]])
  turns = np.int32([[0, -1, 1]] * 2)
  got = turn_grpo(rewards, turns, np.zeros(2, np.int32), normalize=False)
  np.testing.assert_array_equal(got, [[0.5, 0, 0], [-0.5, 0, 0]])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_one_device(kind):
  want = turn_grpo(REWARDS, TURN_IDS, IDS)
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  with jax.set_mesh(mesh):
    arrays = [jax.device_put(x, rows) for x in (REWARDS, TURN_IDS, IDS)]
    got = jax.jit(turn_grpo)(*arrays)
  np.testing.assert_allclose(got, want, 1e-5, 1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: turn_grpo(REWARDS[:, 0], TURN_IDS, IDS), r"turn_rewards must be \[B, U\]"),
    (lambda: turn_grpo(REWARDS, TURN_IDS[:3], IDS), r"turn_ids must be \[B, T\]"),
    (lambda: turn_grpo(REWARDS, REWARDS, IDS), r"turn_ids must be \[B, T\]"),
    (lambda: turn_grpo(REWARDS, TURN_IDS, IDS, singleton="one"), "singleton"),
    (lambda: turn_grpo(REWARDS, TURN_IDS, IDS, discount=1.5), "discount"),
    (lambda: turn_grpo(REWARDS, TURN_IDS, jnp.zeros(3, jnp.int32)), "group_ids"),
  ],
)
def test_what_cannot_be_right_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
