"""Every measured loss of verl and SkyRL, with its gradient; KL; loss reduction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_arrays, assert_metrics, cases

from tis_jax.compat import skyrl, verl

_ARRAYS = {
  "verl_loss": ("old_logprobs", "advantages", "mask", "rollout_is_weights"),
  "skyrl_loss": ("old_logprobs", "advantages", "mask", "rollout_logprobs"),
}
_NAMES = {"verl_loss": "loss_mode", "skyrl_loss": "policy_loss_type"}
_ALL = [(kind, i) for kind in _ARRAYS for i in range(len(cases(kind)))]
# One case of each loss, the smallest there is.
_EACH = [
  (kind, min(indices, key=lambda i: cases(kind)[i]["mask"].size))
  for kind, key in _NAMES.items()
  for name in sorted({c["config"][key] for c in cases(kind)})
  if (indices := [i for i, c in enumerate(cases(kind)) if c["config"][key] == name])
]


@functools.cache
def _compiled(kind, index):
  """`fn(case) -> (loss, metrics), gradient`, compiled once for the tests of a case."""
  config = dict(cases(kind)[index]["config"])
  config.pop("uses_is_weights", None)
  build = verl.policy_loss if kind == "verl_loss" else skyrl.policy_loss
  fn = jax.jit(jax.value_and_grad(build(config), has_aux=True))
  names = ("logprobs", *_ARRAYS[kind])
  return lambda case: fn(*(case.get(name) for name in names))


def _assert_equal(found, case):
  (loss, metrics), grad = found
  assert_arrays(loss, case["out_loss"])
  np.testing.assert_allclose(grad, case["out_grad"], rtol=1e-4, atol=1e-6)
  assert_metrics(metrics, case["metrics"])
  assert set(metrics) == set(case["metrics"])


@pytest.mark.parametrize(("kind", "index"), _ALL)
def test_loss_and_gradient_equal_the_measured_ones(kind, index):
  case = cases(kind)[index]
  _assert_equal(_compiled(kind, index)(case), case)


@pytest.mark.parametrize(("kind", "index"), _EACH)
def test_garbage_under_the_mask_reaches_neither_loss_nor_gradient(kind, index):
  case = cases(kind)[index]
  padding = case["mask"] == 0
  dirt = {
    name: np.where(padding, garbage, case[name])
    for name, garbage in (
      ("logprobs", np.nan),
      ("old_logprobs", -np.inf),
      ("rollout_logprobs", np.nan),
      ("advantages", np.inf),
    )
  }
  _assert_equal(_compiled(kind, index)(case | dirt), case)


@pytest.mark.parametrize(("kind", "index"), _EACH)
def test_a_batch_without_tokens_gives_nothing(kind, index):
  case = cases(kind)[index]
  empty = case | {"mask": np.zeros_like(case["mask"])}
  (loss, metrics), grad = _compiled(kind, index)(empty)
  assert loss == 0 and not grad.any()
  assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("index", range(len(cases("verl_kl"))))
def test_kl_and_its_gradient_equal_the_measured_ones(index):
  case = cases("verl_kl")[index]
  fn = verl.kl_penalty(case["config"])
  assert_arrays(fn(case["logprobs"], case["old_logprobs"]), case["out_kl"])
  masked_sum = lambda logp: (fn(logp, case["old_logprobs"]) * case["mask"]).sum()
  grad = jax.grad(masked_sum)(jnp.asarray(case["logprobs"]))
  np.testing.assert_allclose(grad, case["out_grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("index", range(len(cases("skyrl_reduction"))))
def test_reduction_equals_the_measured_one(index):
  case = cases("skyrl_reduction")[index]
  config = dict(case["config"])
  sizes = config.pop("prompt_sizes")
  scaled = skyrl.reduction(config)(case["advantages"], case["mask"], sizes)
  assert_arrays(scaled, case["out_scaled_advantages"])


def test_prompt_mean_needs_the_sizes_of_its_prompts():
  fn = skyrl.reduction({"loss_reduction": "prompt_mean"})
  with pytest.raises(ValueError, match=r"SkyRL.*prompt_sizes"):
    fn(np.ones((2, 3)), np.ones((2, 3)))
  with pytest.raises(ValueError, match="do not add up to the 2 rows"):
    fn(np.ones((2, 3)), np.ones((2, 3)), [1, 2])


@pytest.mark.parametrize(
  ("build", "config"),
  [
    (verl.policy_loss, {"loss_mode": "clip_cov", "clip_cov_ratio": 0.25}),
    (
      skyrl.policy_loss,
      {"policy_loss_type": "clip_cov", "clip_cov": {"clip_ratio": 0.25}},
    ),
  ],
)
def test_clip_cov_drops_tokens_of_high_covariance(build, config):
  """Two of eight tokens, from the four whose covariance lies in (1, 5)."""
  fn = build(config)
  logp = jnp.array([[-2.0, -2.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0]])
  advantages = jnp.array([[-2.0, -2.0, 2.0, 2.0, 0.1, 0.1, -0.1, -0.1]])
  mask = jnp.ones((1, 8))
  loss = lambda x, key: fn(x, logp, advantages, mask, key=key)[0]
  grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
  dropped = np.asarray(grads(logp, jax.random.split(jax.random.key(0), 8))[:, 0] == 0)
  assert (dropped.sum(1) == 2).all() and not dropped[:, 4:].any()
  assert len({tuple(row) for row in dropped}) > 1  # it draws
  with pytest.raises(ValueError, match="pass key="):
    loss(logp, None)


def test_verl_bypass_reinforce_weighs_by_policy_over_sampler():
  """Hand-worked: ratios 2 and 1/4; the cap is 1.5; k1 in [-log 3, log 3] drops 1/4."""
  config = {
    "loss_mode": "bypass_mode",
    "loss_agg_mode": "seq-mean-token-sum",
    "rollout_correction": {
      "rollout_is": "token",
      "rollout_is_threshold": 1.5,
      "rollout_rs": "token_k1",
      "rollout_rs_threshold": 3.0,
      "loss_type": "reinforce",
    },
  }
  sampler = jnp.log(jnp.array([[0.25, 0.8]]))
  logp = jnp.log(jnp.array([[0.5, 0.2]]))
  fn = verl.policy_loss(config)
  objective = lambda x: fn(x, sampler, jnp.full((1, 2), 2.0), jnp.ones((1, 2)))[0]
  loss, grad = jax.jit(jax.value_and_grad(objective))(logp)
  np.testing.assert_allclose(loss, -2 * 1.5 * np.log(0.5), rtol=1e-6)
  np.testing.assert_allclose(grad, [[-3.0, 0.0]], rtol=1e-6)


def test_verl_bypass_ppo_clip_logs_the_weight_and_does_not_apply_it():
  inner = {"rollout_is": "token", "rollout_is_threshold": 1.5}
  config = {"loss_mode": "bypass_mode", "rollout_correction": inner}
  sampler = jnp.log(jnp.array([[0.25, 0.8]]))
  logp = jnp.log(jnp.array([[0.5, 0.2]]))
  arrays = (logp, sampler, jnp.ones((1, 2)), jnp.ones((1, 2)))
  loss, metrics = verl.policy_loss(config)(*arrays)
  plain, _ = verl.policy_loss()(*arrays)
  assert loss == plain
  np.testing.assert_allclose(metrics["rollout_corr/rollout_is_max"], 1.5)
  assert (
    verl.correction({**inner, "bypass_mode": True})(*arrays[:2], arrays[3])[0] is None
  )


def test_skyrl_refuses_what_counts_the_sampler_twice():
  config = {
    "policy_loss_type": "cispo",
    "cispo": {"cispo_anchor": "rollout"},
    "off_policy_correction": {"tis_ratio_type": "token"},
  }
  with pytest.raises(ValueError, match=r"SkyRL.*twice"):
    skyrl.policy_loss(config)


def test_skyrl_correction_without_sampler_log_probs_is_an_error():
  fn = skyrl.policy_loss({"off_policy_correction": {"tis_ratio_type": "token"}})
  with pytest.raises(ValueError, match=r"SkyRL.*sampler_logp"):
    fn(*[jnp.zeros((1, 2))] * 4)


def test_skyrl_use_tis_is_a_token_cap():
  case = cases("skyrl_loss")[0]
  old = skyrl.policy_loss({"use_tis": True, "tis_imp_ratio_cap": 1.01})
  new = skyrl.policy_loss(
    {
      "off_policy_correction": {
        "tis_ratio_type": "token",
        "token_tis_ratio_clip_high": 1.01,
      }
    }
  )
  arrays = [
    case[name]
    for name in ("logprobs", "old_logprobs", "advantages", "mask", "rollout_logprobs")
  ]
  assert old(*arrays)[0] == new(*arrays)[0]
