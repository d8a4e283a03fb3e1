"""Every measured advantage of verl and SkyRL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_arrays, cases

from tis_jax.compat import skyrl, verl

_BUILDERS = {
  "verl_advantage": verl.advantages,
  "skyrl_advantage": skyrl.advantages,
}
_EXTRAS = {
  "values": "values",
  "reward_baselines": "reward_baselines",
  "old_logprobs": "old_logp",
  "sum_pi_squared": "sum_pi_squared",
}
_ALL = [(kind, i) for kind in _BUILDERS for i in range(len(cases(kind)))]


def _extras(case):
  return {ours: case[theirs] for theirs, ours in _EXTRAS.items() if theirs in case}


@functools.cache
def _compiled(kind, index):
  fn = jax.jit(_BUILDERS[kind](cases(kind)[index]["config"]))
  return lambda case: fn(case["rewards"], case["mask"], case["group"], **_extras(case))


@pytest.mark.parametrize(("kind", "index"), _ALL)
def test_equals_the_measured_numbers(kind, index):
  case = cases(kind)[index]
  advantages, returns = _compiled(kind, index)(case)
  assert_arrays(advantages, case["out_advantages"])
  assert_arrays(returns, case["out_returns"])


@pytest.mark.parametrize(("kind", "index"), _ALL)
def test_garbage_in_padding_stays_there(kind, index):
  case = cases(kind)[index]
  padding = case["mask"] == 0
  names = ("rewards", "values", "old_logprobs", "sum_pi_squared")
  clean, dirty = (
    {name: np.where(padding, filler, case[name]) for name in names if name in case}
    for filler in (0.0, np.nan)
  )
  wanted, found = (_compiled(kind, index)(case | x) for x in (clean, dirty))
  for ours, theirs in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(
      np.where(padding, 0, ours), np.where(padding, 0, theirs)
    )


def test_a_row_alone_in_its_group():
  """verl's rloo and its vectorised form disagree on it, and so do theirs here."""
  rewards = jnp.array([[3.0], [1.0], [2.0]])
  mask, group = jnp.ones((3, 1)), jnp.array([0, 1, 1])
  first = lambda build, config: build(config)(rewards, mask, group)[0][0, 0]
  assert first(verl.advantages, {"adv_estimator": "grpo"}) == pytest.approx(3.0)
  assert first(verl.advantages, {"adv_estimator": "rloo"}) == 3.0
  assert first(verl.advantages, {"adv_estimator": "rloo_vectorized"}) == 0.0
  assert first(skyrl.advantages, {"advantage_estimator": "rloo"}) == 0.0
  assert first(skyrl.advantages, {"advantage_estimator": "maxrl"}) == 3.0


def test_tir_token_baseline_packs_each_row_to_the_left():
  """A hole in the mask changes nothing: it equals the plain one on packed rows."""
  case = next(
    c
    for c in cases("verl_advantage")
    if c["config"]["adv_estimator"] == "optimal_token_baseline"
  )
  plain = verl.advantages({"adv_estimator": "optimal_token_baseline"})
  packed = verl.advantages({"adv_estimator": "tir_optimal_token_baseline"})
  wanted, _ = plain(case["rewards"], case["mask"], case["group"], **_extras(case))
  hole = lambda x: np.insert(x, 1, 0, axis=1)
  extras = {k: hole(v) if v.ndim == 2 else v for k, v in _extras(case).items()}
  found, _ = packed(hole(case["rewards"]), hole(case["mask"]), case["group"], **extras)
  np.testing.assert_allclose(np.delete(found, 1, axis=1), wanted, rtol=2e-5, atol=1e-6)


def test_gdpo_normalises_each_reward_on_its_own():
  config = {
    "adv_estimator": "gdpo",
    "gdpo_reward_keys": ["right", "short"],
    "gdpo_reward_weights": [1.0, 0.5],
  }
  by_key = {
    "right": jnp.array([[1.0], [0.0], [1.0], [0.0]]),
    "short": jnp.array([[0.0], [40.0], [60.0], [20.0]]),
  }
  group = jnp.array([0, 0, 1, 1])
  total = by_key["right"] + by_key["short"]
  found, _ = verl.advantages(config)(
    total, jnp.ones((4, 1)), group, reward_by_key=by_key
  )
  # Each pair normalises to +-1/sqrt(2); the sums (.5, -.5, 1.5, -1.5)/sqrt(2) whiten.
  raw = np.array([0.5, -0.5, 1.5, -1.5]) / np.sqrt(2)
  np.testing.assert_allclose(found[:, 0], raw / raw.std(ddof=1), rtol=1e-4)


@pytest.mark.parametrize(
  ("build", "config", "missing"),
  [
    (verl.advantages, {"adv_estimator": "gae"}, "values="),
    (verl.advantages, {"adv_estimator": "remax"}, "reward_baselines="),
    (verl.advantages, {"adv_estimator": "grpo"}, "group"),
    (skyrl.advantages, {"advantage_estimator": "gae"}, "values="),
    (skyrl.advantages, {"advantage_estimator": "rloo"}, "group"),
  ],
)
def test_a_missing_array_is_named(build, config, missing):
  with pytest.raises(ValueError, match=missing):
    build(config)(jnp.ones((2, 1)), jnp.ones((2, 1)))
