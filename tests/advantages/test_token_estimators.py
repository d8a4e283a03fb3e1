"""Estimators along the tokens against plain loops, in float64."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax import advantages

ROWS, TOKENS = 8, 9
RNG = np.random.default_rng(0)
MASK = np.arange(TOKENS) < np.array([9, 7, 1, 0, 9, 4, 6, 2])[:, None]
MASK[0, 3:5] = False  # a tool call
MASK[4, 0] = False  # left padding
REWARDS = RNG.normal(size=MASK.shape).astype(np.float32)
VALUES = RNG.normal(size=MASK.shape).astype(np.float32)
IDS = np.array([4, -1, 4, 4, -1, 7, -1, 4], np.int32)
OUTCOMES = RNG.normal(size=ROWS).astype(np.float32)
LOGP = -RNG.gamma(2.0, 0.5, MASK.shape).astype(np.float32)
SQUARED = RNG.random(MASK.shape).astype(np.float32)


def dirty(x):
  return np.where(MASK, x, np.nan).astype(np.float32)


rewards_to_go = jax.jit(advantages.rewards_to_go)
gae = jax.jit(advantages.gae)


def loop_returns(rewards, discount):
  out = np.zeros(MASK.shape)
  for i in range(ROWS):
    later = 0.0
    for t in np.flatnonzero(MASK[i])[::-1]:
      later = rewards[i, t] + discount * later
      out[i, t] = later
  return out


def loop_gae(rewards, discount, trace):
  out = np.zeros(MASK.shape)
  for i in range(ROWS):
    value = advantage = 0.0
    for t in np.flatnonzero(MASK[i])[::-1]:
      delta = rewards[i, t] + discount * value - VALUES[i, t]
      advantage = delta + discount * trace * advantage
      value = VALUES[i, t]
      out[i, t] = advantage
  return out


def outcome_as_tokens():
  out = np.zeros(MASK.shape)
  for i in range(ROWS):
    if MASK[i].any():
      out[i, np.flatnonzero(MASK[i])[-1]] = OUTCOMES[i]
  return out


def loop_whiten(x):
  inside = x[MASK].astype(np.float64)
  scale = np.sqrt(inside.var(ddof=1) + 1e-8)
  return np.where(MASK, (x - inside.mean()) / scale, 0.0)


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_rewards_to_go_step_over_the_holes(discount):
  got = rewards_to_go(dirty(REWARDS), MASK, discount=discount)
  np.testing.assert_allclose(got, loop_returns(REWARDS, discount), rtol=1e-4, atol=1e-5)


def test_outcome_rewards_go_on_the_last_token():
  got = rewards_to_go(OUTCOMES, MASK, discount=0.9)
  want = loop_returns(outcome_as_tokens(), 0.9)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_gae_steps_over_the_holes(discount, trace):
  got, returns = gae(
    dirty(REWARDS), dirty(VALUES), MASK, discount=discount, trace=trace
  )
  want = loop_gae(REWARDS, discount, trace)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  want = np.where(MASK, want + VALUES, 0.0)
  np.testing.assert_allclose(returns, want, rtol=1e-4, atol=1e-5)


def test_gae_whitens_its_advantages_and_not_its_returns():
  plain, returns = gae(OUTCOMES, VALUES, MASK)
  got, same = advantages.gae(OUTCOMES, VALUES, MASK, whitened=True)
  inside = np.asarray(plain, np.float64)[MASK]
  want = (inside - inside.mean()) / inside.std(ddof=1)
  np.testing.assert_allclose(np.asarray(got)[MASK], want, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(same, returns)


def test_gae_at_full_trace_is_the_return_less_the_value():
  got, returns = gae(OUTCOMES, VALUES, MASK)
  want = loop_returns(outcome_as_tokens(), 1.0)
  np.testing.assert_allclose(returns, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    got, np.where(MASK, want - VALUES, 0), rtol=1e-4, atol=1e-5
  )


def test_whiten_over_the_mask():
  got = advantages.whiten(dirty(REWARDS), MASK)
  np.testing.assert_allclose(got, loop_whiten(REWARDS), rtol=1e-5, atol=1e-6)
  one = np.zeros_like(MASK)
  one[0, 0] = True
  assert (np.asarray(advantages.whiten(REWARDS, one)) == 0).all()
  assert (np.asarray(advantages.whiten(REWARDS, np.zeros_like(MASK))) == 0).all()


def test_reinforce_plus_plus_whitens_the_returns():
  got, returns = advantages.reinforce_plus_plus(dirty(REWARDS), MASK, discount=0.9)
  want = loop_returns(REWARDS, 0.9)
  np.testing.assert_allclose(returns, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got, loop_whiten(want), rtol=1e-4, atol=1e-5)


def test_reinforce_plus_plus_baseline_centres_then_whitens():
  got = advantages.reinforce_plus_plus_baseline(OUTCOMES, IDS, MASK)
  centred = np.array(
    [OUTCOMES[i] - OUTCOMES[IDS[i] == IDS].mean() for i in range(ROWS)]
  )
  want = loop_whiten(np.repeat(centred[:, None], TOKENS, 1))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_remax_subtracts_the_greedy_reward():
  got = advantages.remax(OUTCOMES, OUTCOMES[::-1])
  np.testing.assert_allclose(got, OUTCOMES - OUTCOMES[::-1])


def test_gdpo_normalises_each_reward_on_its_own():
  table = np.stack([OUTCOMES, 100.0 * REWARDS[:, 0]], 1)
  got = advantages.gdpo(table, IDS, MASK, weights=[2.0, 0.5])
  total = np.zeros(ROWS)
  for weight, rewards in zip((2.0, 0.5), table.T, strict=True):
    for i in range(ROWS):
      group = rewards[IDS[i] == IDS]
      if len(group) > 1:
        total[i] += weight * (rewards[i] - group.mean()) / (group.std(ddof=1) + 1e-6)
  want = loop_whiten(np.repeat(total[:, None], TOKENS, 1))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  # A reward's own scale is gone: the second counts by its weight alone.
  rescaled = advantages.gdpo(table * [1.0, 1e-3], IDS, MASK, weights=[2.0, 0.5])
  np.testing.assert_allclose(got, rescaled, rtol=1e-3, atol=1e-3)


def loop_optimal_token_baseline(weights, kept, singleton):
  returns = loop_returns(REWARDS, 1.0)
  energy = (1 - 2 * np.exp(LOGP.astype(np.float64)) + SQUARED) * weights**2
  path = np.cumsum(np.where(MASK, energy, 0.0), 1)
  out = np.zeros(MASK.shape)
  for i in range(ROWS):
    for t in np.flatnonzero(MASK[i]):
      group = [j for j in np.flatnonzero(IDS[i] == IDS) if MASK[j, t] and kept[j]]
      if len(group) < 2:
        out[i, t] = returns[i, t] if singleton == "raw" else 0.0
        continue
      baseline = np.average(returns[group, t], weights=path[group, t])
      out[i, t] = returns[i, t] - baseline
  return out


@pytest.mark.parametrize("singleton", ["raw", "zero"])
def test_optimal_token_baseline_equals_the_loop(singleton):
  weights = RNG.random(MASK.shape).astype(np.float32) + 0.5
  kept = np.arange(ROWS) != 0
  got, returns = advantages.optimal_token_baseline(
    dirty(REWARDS),
    IDS,
    MASK,
    dirty(LOGP),
    dirty(SQUARED),
    weight=dirty(weights),
    baseline_mask=kept,
    singleton=singleton,
  )
  want = loop_optimal_token_baseline(weights, kept, singleton)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(returns, loop_returns(REWARDS, 1.0), rtol=1e-4, atol=1e-5)


def test_by_ordinal_the_holes_of_tool_calls_do_not_count():
  def to_the_left(x):
    out = np.zeros_like(x)
    for row, source, mask in zip(out, x, MASK, strict=True):
      row[: mask.sum()] = source[mask]
    return out

  packed = [to_the_left(x) for x in (REWARDS, MASK, LOGP, SQUARED)]
  want, _ = advantages.optimal_token_baseline(packed[0], IDS, *packed[1:])
  got, _ = advantages.optimal_token_baseline(
    dirty(REWARDS), IDS, MASK, dirty(LOGP), dirty(SQUARED), align="ordinal"
  )
  got = np.asarray(got)
  np.testing.assert_allclose(to_the_left(got), want, rtol=1e-4, atol=1e-5)
  assert not got[~MASK].any()


ARRAYS = (REWARDS, VALUES, MASK, IDS, OUTCOMES, LOGP, SQUARED)


def every_estimator(rewards, values, mask, ids, outcomes, logp, squared):
  return {
    "gae": advantages.gae(rewards, values, mask, discount=0.9, trace=0.8),
    "r++": advantages.reinforce_plus_plus(outcomes, mask),
    "r++b": advantages.reinforce_plus_plus_baseline(outcomes, ids, mask),
    "gdpo": advantages.gdpo(rewards[:, :2], ids, mask),
    "otb": advantages.optimal_token_baseline(rewards, ids, mask, logp, squared),
  }


def test_lowers_for_tpu_and_cuda():
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in ARRAYS]
  platforms = ["tpu", "cuda"]
  exported = jax.export.export(jax.jit(every_estimator), platforms=platforms)(*shapes)
  assert exported.platforms == ("tpu", "cuda")


def test_sharded_equals_one_device():
  want = jax.jit(every_estimator)(*ARRAYS)
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
      got = jax.jit(every_estimator)(*(jax.device_put(x, rows) for x in ARRAYS))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want
    )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: advantages.rewards_to_go(OUTCOMES), r"must be \[B, T\]"),
    (lambda: advantages.gae(REWARDS, VALUES[:, :2], MASK), "values must be"),
    (lambda: advantages.gdpo(OUTCOMES, IDS, MASK), r"named_rewards must be \[B, K\]"),
    (lambda: advantages.gdpo(REWARDS, IDS, MASK, weights=[1.0]), "weights must be"),
    (lambda: advantages.remax(OUTCOMES, OUTCOMES[:2]), "must both be"),
    (
      lambda: advantages.optimal_token_baseline(
        REWARDS, IDS, MASK, LOGP, SQUARED, singleton="no"
      ),
      "singleton must be one of",
    ),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(call)
