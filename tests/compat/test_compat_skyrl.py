"""SkyRL beyond the measured cases: what its users\' suites asked of this dialect."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import losses
from tis_jax.compat import skyrl

_PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text()
_RNG = np.random.default_rng(0)
_SAMPLER = -_RNG.exponential(1.0, (4, 6)).astype(np.float32)
_LOGP = (_SAMPLER + _RNG.normal(0, 0.3, (4, 6))).astype(np.float32)
_ADVANTAGES = _RNG.normal(size=(4, 6)).astype(np.float32)
_MASK = (np.arange(6) < np.array([[6], [4], [1], [0]])).astype(np.float32)


_ON_THE_SAMPLER = [
  {"policy_loss_type": "rollout_is"},
  {"policy_loss_type": "dppo"},
  {"policy_loss_type": "cispo", "cispo": {"cispo_anchor": "rollout"}},
]


@pytest.mark.parametrize("config", _ON_THE_SAMPLER)
def test_losses_on_the_rollout_need_no_old_log_probs(config):
  fn = skyrl.policy_loss(config)
  objective = lambda x, old: fn(x, old, _ADVANTAGES, _MASK, _SAMPLER)[0]
  both = jax.value_and_grad(objective)
  for with_old, without in zip(both(_LOGP, _LOGP - 1), both(_LOGP, None), strict=True):
    np.testing.assert_array_equal(with_old, without)


def test_old_log_probs_are_asked_for_where_they_are_read():
  mask = {"off_policy_correction": {"sequence_mask_metric": "geometric"}}
  for config, sampler, message in (
    ({}, _SAMPLER, "SkyRL: policy_loss_type 'regular' needs old_logp"),
    ({"policy_loss_type": "dppo"}, None, "SkyRL: .*'dppo' needs old_logp"),
    (
      _ON_THE_SAMPLER[0] | mask,
      _SAMPLER,
      "active off_policy_correction needs old_logp",
    ),
    ({"policy_loss_type": "cispo"}, _SAMPLER, "SkyRL: .*'cispo' needs old_logp"),
  ):
    with pytest.raises(ValueError, match=message):
      skyrl.policy_loss(config)(_LOGP, None, _ADVANTAGES, _MASK, sampler)


def test_a_null_bound_of_a_stage_that_is_off_means_nothing():
  off = {"token_tis_ratio_clip_high": None, "sequence_tis_ratio_clip_high": None}
  off |= {"geo_mask_low": None, "product_mask_high": None}
  assert skyrl.correction(off)(_LOGP, _SAMPLER, _MASK)[0] is None
  on = {"tis_ratio_type": "sequence", "token_tis_ratio_clip_high": None}
  assert skyrl.correction(on)(_LOGP, _SAMPLER, _MASK)[0] is not None
  for config in (
    off | {"tis_ratio_type": "token"},
    off | {"sequence_mask_metric": "geometric"},
  ):
    with pytest.raises(ValueError, match=r"SkyRL: .* must be a number; got None"):
      skyrl.correction(config)


def test_legacy_token_mean_is_the_mean_of_the_micro_batches():
  """Micro-batches of two rows: 10 and 1 tokens; a fifth row belongs to none."""
  fn = skyrl.reduction({"loss_reduction": "token_mean_legacy"})
  mask = np.concatenate([_MASK, np.ones((1, 6))])
  scaled = fn(np.ones((5, 6)), mask, micro_batch_size=2)
  wanted = np.repeat([1 / 20, 1 / 20, 1 / 2, 1 / 2, 0], 6).reshape(5, 6)
  np.testing.assert_allclose(scaled, wanted, rtol=1e-6)
  with pytest.raises(ValueError, match="'token_mean_legacy' needs micro_batch_size"):
    fn(np.ones((5, 6)), mask)


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "k3"])
def test_approximate_kl_is_skyrls(kind):
  fn = skyrl.kl_penalty({"kl_estimator_type": kind})
  mask = np.array([[1.0, 1.0, 0.5, 0.0]])
  x = np.array([[0.3, -25.0, 1.0, np.nan]])
  found = fn(x, np.zeros_like(x), mask)
  value = {
    "k1": lambda x: x,
    "abs": np.abs,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: np.minimum(
      np.expm1(np.clip(-x, -20, 20)) + np.clip(x, -20, 20), 10
    ),
  }[kind]
  wanted = np.append(value(x[:, :3]) * mask[:, :3], 0.0)[None]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  on_policy = jax.grad(lambda x: fn(x, jnp.zeros(1)).sum())(jnp.zeros(1))
  assert on_policy == (1.0 if kind == "k1" else 0.0)


def test_the_critics_loss_counts_rows_without_tokens_as_zero():
  values = np.array([[1.0, 3.0], [0.5, 9.0], [7.0, 7.0]])
  old, returns = np.array([[1.0, 1.0], [0.0, 0.0], [7.0, 7.0]]), np.ones((3, 2))
  mask = np.array([[1, 1], [1, 0], [0, 0]])
  loss, metrics = skyrl.value_loss()(values, old, returns, mask)
  # squares 0 and max(4, 0.04); max(0.25, 0.64); none
  np.testing.assert_allclose(loss, 0.5 * (4 / 2 + 0.64) / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics["values_clipfrac"], 1 / 3, rtol=1e-6)
  loss, metrics = skyrl.value_loss({"value_clip": None})(values, old, returns, mask)
  np.testing.assert_allclose(loss, 0.5 * (4 / 2 + 0.25) / 3, rtol=1e-6)
  assert not metrics


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov"])
def test_covariance_losses_do_not_clamp_the_ratio(kind):
  fn = skyrl.policy_loss({"policy_loss_type": kind, "kl_cov": {"ppo_kl_coef": 0.0}})
  one = jnp.ones((1, 1))
  loss, _ = fn(-one, -31 * one, -one, one, key=jax.random.key(0))
  np.testing.assert_allclose(loss, np.exp(30.0), rtol=1e-5)


def test_kl_cov_has_no_penalty_gradient_on_policy():
  """A = 1, 2, -2: the unclipped surrogate alone, as torch's |x| has no slope at 0."""
  config = {"policy_loss_type": "kl_cov", "kl_cov": {"kl_cov_frac": 1.0}}
  fn = skyrl.policy_loss(config)
  logp, advantages = jnp.array([[-1.0, -2.0, -0.5]]), jnp.array([[1.0, 2.0, -2.0]])
  grad = jax.grad(lambda x: fn(x, logp, advantages, jnp.ones((1, 3)))[0])(logp)
  np.testing.assert_allclose(grad, -advantages, rtol=1e-6)


def test_regular_has_no_dual_clip():
  """A ratio of 10 with A = -1 costs 10; dual_clip stops at 3."""
  one = jnp.ones((1, 1))
  arrays = jnp.log(10.0) * one, 0 * one, -one, one
  np.testing.assert_allclose(skyrl.policy_loss()(*arrays)[0], 10.0, rtol=1e-6)
  dual = skyrl.policy_loss({"policy_loss_type": "dual_clip"})
  np.testing.assert_allclose(dual(*arrays)[0], 3.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "rloo", "maxrl", "reinforce++", "gae"])
def test_a_batch_of_one_row_has_advantages(name):
  fn = skyrl.advantages({"advantage_estimator": name})
  row = np.array([[0.0, 0.0, 1.0]])
  advantage, _ = fn(row, np.ones((1, 3)), np.array([0]), values=np.zeros((1, 3)))
  wanted = {"grpo": 1.0, "maxrl": 1.0, "rloo": 0.0}.get(name, 0.0)
  np.testing.assert_allclose(advantage, np.full((1, 3), wanted), atol=1e-6)


@pytest.mark.parametrize("kind", ["regular", "dual_clip"])
def test_the_page_translates_a_clipped_loss_to_one_of_the_same_number(kind):
  """Ratios of 10 and 1.25 with both signs: the dual clip and both widths show."""
  cell = re.search(rf"\| `{kind}` \| `ppo\(\.\.\., (.*)\)` \|", _PAGE)
  assert cell
  settings = eval(f"dict({cell[1]})")  # the page is ours
  logp = jnp.log(jnp.array([[10.0, 10.0, 1.25, 0.5]]))
  arrays = logp, jnp.zeros((1, 4)), jnp.array([[-1.0, 1.0, 1.0, -1.0]])
  native, _ = losses.ppo(*arrays, **settings)
  peer, _ = skyrl.policy_loss({"policy_loss_type": kind})(*arrays, jnp.ones((1, 4)))
  np.testing.assert_allclose(native.sum(), peer, rtol=1e-6)
