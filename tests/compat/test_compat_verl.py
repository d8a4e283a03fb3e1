"""What verl's own code gave where its golden cases do not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.compat import verl

_ONES = jnp.ones((1, 2))


def _ratios(*rows):
  """(old_logp, sampler_logp, mask) of rows of log-ratios."""
  old = jnp.array(rows, jnp.float32)
  return old, jnp.zeros_like(old), jnp.ones_like(old)


@pytest.mark.parametrize("given", [{}, {"rollout_is": False}])
def test_2025_10_rejects_without_weights_unless_rollout_is_is_true(given):
  """`rollout_is` defaults to false there; its trainer rewrites the mask either way."""
  arrays = _ratios([0.0, 1.0], [0.1, -9.5])
  base = {
    "rollout_is_level": "token",
    "rollout_is_mode": "mask",
    "rollout_is_threshold": 2.0,
    "rollout_is_veto_threshold": 1e-4,
  }
  weight, mask, metrics = verl.correction(base | given)(*arrays)
  assert weight is None
  assert mask.tolist() == [[1.0, 0.0], [0.0, 0.0]]
  applied, applied_mask, applied_metrics = verl.correction(base | {"rollout_is": True})(
    *arrays
  )
  assert applied is not None
  np.testing.assert_array_equal(mask, applied_mask)
  assert metrics == applied_metrics
  native_weight, native_mask, _ = verl.native(base | given)(*arrays)
  np.testing.assert_array_equal(native_mask, mask != 0)
  assert (native_weight[native_mask] == 1).all()


@pytest.mark.parametrize(
  "config",
  [
    {"rollout_is": "sequence", "rollout_is_threshold": 5.0},
    {"rollout_is_level": "sequence", "rollout_is_threshold": 5.0, "rollout_is": True},
  ],
)
def test_a_sequence_weight_sums_raw_differences_before_the_clamp(config):
  weight, _, metrics = verl.correction(config)(*_ratios([-30.0, 31.0]))
  np.testing.assert_allclose(weight, [[np.e, np.e]], rtol=1e-5)
  name = next(name for name in metrics if name.endswith("/rollout_is_max"))
  np.testing.assert_allclose(metrics[name], np.e, rtol=1e-5)


def test_a_geometric_weight_of_2025_10_averages_raw_differences():
  config = {
    "rollout_is_level": "geometric",
    "rollout_is_threshold": 5.0,
    "rollout_is": True,
  }
  weight, _, _ = verl.correction(config)(*_ratios([-30.0, 32.0]))
  np.testing.assert_allclose(weight, [[np.e, np.e]], rtol=1e-5)


@pytest.mark.parametrize("option", ["seq_sum_k1", "seq_mean_k1"])
def test_a_rejection_statistic_clamps_tokens_before_the_sum(option):
  """Raw, -30 and 31 sum to 1, outside log 2; clamped to +-20 they cancel."""
  config = {"rollout_rs": option, "rollout_rs_threshold": "0.5_2.0"}
  _, mask, metrics = verl.correction(config)(*_ratios([-30.0, 31.0]))
  assert (mask == 1).all()
  assert metrics[f"rollout_corr/rollout_rs_{option}_mean"] == 0


def test_a_trailing_comma_in_rollout_rs_is_read_over():
  with_comma = {"rollout_rs": "token_k1, ,", "rollout_rs_threshold": "0.5_2.0"}
  without = {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.5_2.0"}
  assert verl.native(with_comma) == verl.native(without)
  with pytest.raises(ValueError, match="names no statistic"):
    verl.correction({"rollout_rs": ",", "rollout_rs_threshold": "0.5_2.0"})


@pytest.mark.parametrize("name", ["abs", "abs+"])
def test_abs_kl_has_gradient_zero_on_policy(name):
  logp, ref = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-0.5, -2.5, -0.5])
  fn = verl.kl_penalty({"kl_penalty": name})
  np.testing.assert_allclose(fn(logp, ref), [0.5, 0.5, 0.0])
  grad = jax.grad(lambda x: fn(x, ref).sum())(logp)
  wanted = [-1.0, 1.0, 0.0] if name == "abs" else [-0.5, 0.5, 0.0]
  np.testing.assert_allclose(grad, wanted)


def test_kl_cov_penalty_has_gradient_zero_on_policy():
  """On policy only the surrogate pulls: verl's [-1, -2, 1] where JAX's |x| adds 1."""
  fn = verl.policy_loss(
    {"loss_mode": "kl_cov", "kl_cov_ratio": 1.0, "ppo_kl_coef": 1.0}
    | {"loss_agg_mode": "token-sum"}
  )
  logp, advantages = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[1.0, 2.0, -1.0]])
  loss = lambda x: fn(x, logp, advantages, jnp.ones((1, 3)))[0]
  np.testing.assert_allclose(jax.grad(loss)(logp), [[-1.0, -2.0, 1.0]])


_LOG_RATIO = 25.0


@pytest.mark.parametrize(
  ("config", "value", "drift"),
  [
    ({"loss_mode": "dro", "dro_beta": 0.5}, -25.0 + 0.25 * 625, -25.0),
    ({"loss_mode": "kl_cov", "ppo_kl_coef": 2.0}, -np.exp(25.0) + 50.0, 25.0),
    ({"loss_mode": "clip_cov", "clip_ratio_high": 1e12}, -np.exp(25.0), -25.0),
    ({"loss_mode": "geo_mean", "clip_ratio_high": 30}, -np.exp(25.0), -25.0),
    ({"loss_mode": "vanilla", "clip_ratio_high": 1e12}, -np.exp(20.0), -20.0),
    ({"loss_mode": "cispo", "clip_ratio_high": 1e12}, -np.exp(20.0) * 25.0, -20.0),
    ({"loss_mode": "sapo"}, -4.0, -20.0),
  ],
)
def test_each_loss_clamps_its_log_ratio_or_not_as_verl(config, value, drift):
  fn = verl.policy_loss(config)
  one = jnp.ones((1, 1))
  key = {"key": jax.random.key(0)} if config["loss_mode"] == "clip_cov" else {}
  loss, metrics = fn(_LOG_RATIO * one, 0 * one, one, one, **key)
  np.testing.assert_allclose(loss, value, rtol=1e-5)
  np.testing.assert_allclose(metrics["actor/ppo_kl"], drift, rtol=1e-6)


@pytest.mark.parametrize("mode", ["dppo_tv", "dppo_kl"])
def test_dppo_lower_clip_fraction_counts_ratios_over_the_cap(mode):
  """Of four ratios (8, 8, 2, 1) two are over 3, and one of them is dropped."""
  old = jnp.log(jnp.array([[0.001, 0.1, 0.01, 0.5]]))
  logp = old + jnp.log(jnp.array([[8.0, 8.0, 2.0, 1.0]]))
  fn = verl.policy_loss({"loss_mode": mode})
  _, metrics = fn(logp, old, jnp.ones((1, 4)), jnp.ones((1, 4)))
  assert metrics["actor/pg_clipfrac"] == 0.25
  assert metrics["actor/pg_clipfrac_lower"] == 0.25


def test_a_null_clip_ratio_low_is_clip_ratio():
  logp, zeros = jnp.log(jnp.array([[0.5, 1.5]])), jnp.zeros((1, 2))
  null = {"clip_ratio": 0.3, "clip_ratio_low": None, "clip_ratio_high": None}
  said = {"clip_ratio_low": 0.3, "clip_ratio_high": 0.3}
  advantages = jnp.array([[-1.0, 1.0]])
  found, wanted = (
    verl.policy_loss(config)(logp, zeros, advantages, _ONES)[0]
    for config in (null, said)
  )
  assert found == wanted == pytest.approx((0.7 - 1.3) / 2)


def test_a_null_ppo_kl_coef_is_one():
  logp, old = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -2.5]])
  base = {"loss_mode": "kl_cov", "kl_cov_ratio": 1.0}
  found, wanted = (
    verl.policy_loss(base | {"ppo_kl_coef": coef})(logp, old, _ONES, _ONES)[0]
    for coef in (None, 1.0)
  )
  assert found == wanted


_LOSS = jnp.array([[1.0, 2.0, 3.0], [5.0, jnp.nan, jnp.nan], [jnp.nan] * 3])
_MASK = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
  ("mode", "counts", "wanted"),
  [
    ("token-mean", {}, 11 / 4),
    ("token-mean", {"dp_size": 2, "batch_num_tokens": 10}, 11 / 10 * 2),
    ("token-sum", {"dp_size": 2}, 22.0),
    ("seq-mean-token-sum", {}, 11 / 2),
    ("seq-mean-token-sum", {"dp_size": 4, "global_batch_size": 8}, 11 / 8 * 4),
    ("seq-mean-token-mean", {}, (2 + 5) / 2),
    ("seq-mean-token-mean", {"dp_size": 4, "global_batch_size": 8}, 7 / 8 * 4),
    ("seq-mean-token-sum-norm", {}, 11 / 2 / 3),
    ("seq-mean-token-sum-norm", {"dp_size": 4, "global_batch_size": 8}, 11 / 8 / 3 * 4),
  ],
)
def test_agg_loss_divides_by_the_counts_of_the_global_batch(mode, counts, wanted):
  called = verl.agg_loss({"loss_agg_mode": mode})(_LOSS, _MASK, **counts)
  configured = verl.agg_loss({"loss_agg_mode": mode, "global_batch_info": counts})
  np.testing.assert_allclose(called, wanted, rtol=1e-6)
  np.testing.assert_allclose(configured(_LOSS, _MASK), wanted, rtol=1e-6)
  traced = jax.jit(verl.agg_loss({"loss_agg_mode": mode}))(_LOSS, _MASK, **counts)
  np.testing.assert_allclose(traced, wanted, rtol=1e-6)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_data_parallel_ranks_without_a_global_count_are_refused(mode):
  fn = verl.agg_loss({"loss_agg_mode": mode})
  with pytest.raises(ValueError, match=r"give (batch_num_tokens|global_batch_size)"):
    fn(_LOSS, _MASK, dp_size=2)


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "gpg", "dppo_tv", "bypass_mode"])
def test_micro_batches_of_a_policy_loss_add_up_with_global_counts(mode):
  rng = np.random.default_rng(1)
  logp, old, advantages = (jnp.float32(rng.normal(-1, 0.3, (4, 3))) for _ in range(3))
  mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
  fn = verl.policy_loss({"loss_mode": mode})
  whole, _ = fn(logp, old, advantages, mask)
  counts = {"dp_size": 2, "batch_num_tokens": 9, "global_batch_size": 4}
  parts = [
    fn(*(x[i : i + 2] for x in (logp, old, advantages, mask)), **counts)[0]
    for i in (0, 2)
  ]
  np.testing.assert_allclose(sum(parts) / 2, whole, rtol=1e-5)


def test_value_loss_is_verls_and_aggregates_globally():
  """Hand-worked: free errors 1 and 0, clipped ones 1 and 0.64; half the mean."""
  fn = verl.value_loss({"cliprange_value": 0.2})
  values, old = jnp.array([[1.0, 1.0, jnp.nan]]), jnp.array([[1.0, 0.0, jnp.nan]])
  returns, mask = jnp.array([[2.0, 1.0, jnp.nan]]), jnp.array([[1, 1, 0]])
  loss, metrics = fn(values, old, returns, mask)
  np.testing.assert_allclose(loss, 0.5 * 1.64 / 2, rtol=1e-6)
  assert metrics["critic/vf_clipfrac"] == 0.5 and metrics["critic/vpred_mean"] == 1.0
  part, _ = fn(values, old, returns, mask, dp_size=1, batch_num_tokens=8)
  np.testing.assert_allclose(part, 0.5 * 1.64 / 8, rtol=1e-6)
  assert jnp.isfinite(jax.grad(lambda v: fn(v, old, returns, mask)[0])(values)).all()


def test_optimal_token_baseline_with_holes_in_the_mask():
  """A token alone at its column has itself for a baseline; a length cuts a column."""
  fn = verl.advantages({"adv_estimator": "optimal_token_baseline"})
  mask = jnp.array([[1, 0, 1, 1], [1, 1, 0, 0]])
  rewards = jnp.array([[0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 0.0, 0.0]])
  half = jnp.full((2, 4), 0.5)
  advantages, returns = fn(
    rewards, mask, jnp.array([4, 4]), old_logp=jnp.log(half), sum_pi_squared=half
  )
  np.testing.assert_allclose(
    advantages, [[1.0, 0.0, 3.0, 3.0], [-1.0, 0.0, 0.0, 0.0]], atol=1e-6
  )
  # In the hole the return of what follows stays, as verl leaves it.
  np.testing.assert_array_equal(returns, [[3.0, 3.0, 3.0, 3.0], [1.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("grpo", 2.0),
    ("grpo_vectorized", 2.0),
    ("rloo", 2.0),
    ("rloo_vectorized", 0.0),
    ("opo", 2.0),
    ("gpg", 2.0),
    ("reinforce_plus_plus_baseline", 0.0),
    ("gdpo", 0.0),
    ("optimal_token_baseline", 2.0),
    ("tir_optimal_token_baseline", 2.0),
  ],
)
def test_a_batch_of_one_row_has_verls_value(name, wanted):
  fn = verl.advantages({"adv_estimator": name})
  half = jnp.full((1, 3), 0.5)
  advantages, returns = fn(
    jnp.array([[0.0, 2.0, 0.0]]),
    jnp.array([[1, 1, 0]]),
    jnp.array([9]),
    old_logp=jnp.log(half),
    sum_pi_squared=half,
  )
  assert advantages.shape == returns.shape == (1, 3)
  np.testing.assert_allclose(advantages, [[wanted, wanted, 0.0]], atol=1e-5)
