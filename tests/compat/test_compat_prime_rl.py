"""prime-rl's losses of 2026-09 against float64 numpy: value, gradient, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.compat import prime_rl

_MASK = np.array([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
_SAMPLER = np.log([[0.2, 0.8, 0.5, 1.0, 0.1], [0.5, 0.5, 0.5, 0.5, 1e-6]])
_LOGP = _SAMPLER + np.log([[4.0, 0.5, 1.0, 1.0, 1.3], [1.2, 0.9, 1.0, 0.1, 2e4]])
_A = np.array([1.0, -2.0])
_TOKENS = _MASK.sum()


def _oracle(config, logp):
  """The token losses and their gradients."""
  log_ratio, gain = logp - _SAMPLER, config.get("adv_tau", 1.0) * _A[:, None]
  r, kind = np.exp(log_ratio), config["type"]
  capped = np.minimum(r, config.get("max_importance_ratio", 1e4))
  if kind == "ipo":
    keep = 1.0 * (np.abs(np.exp(logp) - np.exp(_SAMPLER)) <= config["eps"])
    square = config.get("kl_tau", 0.0)
    loss = -keep * gain * capped + square * log_ratio**2
    return loss, -keep * gain * capped + 2 * square * log_ratio
  low, high = config["ratio_low"], config["ratio_high"]
  if kind == "icepop":
    loss = -gain * np.where((r >= low) & (r <= high), r, 0)
    return loss, loss
  if kind == "cispo":
    weight = -gain * np.clip(r, low, high)
    return weight * logp, weight + 0 * logp
  clipped = np.clip(capped, low, high)
  plain = gain * capped <= gain * clipped
  return -np.minimum(gain * capped, gain * clipped), -gain * np.where(plain, capped, 0)


_CONFIGS = [
  {"type": "ipo", "eps": 0.3, "max_importance_ratio": 1e4},
  {"type": "ipo", "eps": 0.08, "adv_tau": 0.5, "kl_tau": 0.1},
  {"type": "icepop", "ratio_low": 0.2, "ratio_high": 5.0},
  {"type": "ppo", "ratio_low": 0.8, "ratio_high": 1.2, "max_importance_ratio": 1e4},
  {"type": "cispo", "ratio_low": 0.0, "ratio_high": 5.0},
  {"type": "cispo", "ratio_low": 0.5, "ratio_high": 1.1, "adv_tau": 2.0},
]


@pytest.mark.parametrize("config", _CONFIGS)
def test_the_loss_and_its_gradient_are_the_formulas(config):
  fn = prime_rl.policy_loss(config)
  hole = np.where(_MASK, 0.0, np.nan)
  objective = lambda x: fn(x, _SAMPLER + hole, jnp.asarray(_A), _MASK)[0]
  logp = jnp.asarray(_LOGP + hole, jnp.float32)
  loss, grad = jax.value_and_grad(objective)(logp)
  loss_BT, grad_BT = (np.where(_MASK, x, 0.0) for x in _oracle(config, _LOGP))
  np.testing.assert_allclose(loss, loss_BT.sum() / _TOKENS, rtol=1e-5)
  np.testing.assert_allclose(grad, grad_BT / _TOKENS, rtol=1e-4, atol=1e-6)


def test_the_defaults_are_those_of_the_config_classes():
  same = [
    ({}, {"type": "ipo", "eps": 0.3, "kl_tau": 0.0, "max_importance_ratio": 1e4}),
    ({"type": "icepop"}, _CONFIGS[2]),
    ({"type": "ppo"}, _CONFIGS[3]),
    ({"type": "cispo"}, _CONFIGS[4]),
  ]
  for short, long in same:
    losses = [
      prime_rl.policy_loss(c)(_LOGP, _SAMPLER, jnp.asarray(_A), _MASK)[0]
      for c in (short, long)
    ]
    assert losses[0] == losses[1]


def test_a_capped_ratio_keeps_its_gradient():
  """The ratio is 8, the cap 2: value -2, gradient -2."""
  fn = prime_rl.policy_loss({"eps": 1.0, "max_importance_ratio": 2.0})
  sampler, one = jnp.log(jnp.array([[0.1]])), jnp.ones((1, 1))
  loss, grad = jax.value_and_grad(lambda x: fn(x, sampler, one, one)[0])(
    sampler + jnp.log(8.0)
  )
  np.testing.assert_allclose([loss, grad[0, 0]], [-2.0, -2.0], rtol=1e-6)


def test_a_rejected_ratio_that_overflows_leaves_no_nan():
  fn = prime_rl.policy_loss({"type": "icepop"})
  sampler, one = jnp.full((1, 1), -200.0), jnp.ones((1, 1))
  loss, grad = jax.value_and_grad(lambda x: fn(x, sampler, one, one)[0])(-one)
  assert loss == 0 and grad == 0


def test_masks_and_metrics_of_each_type():
  arrays = (_LOGP, _SAMPLER, _MASK)
  advantages = jnp.asarray(_A)
  _, mask, metrics = prime_rl.correction({"type": "icepop"})(*arrays)
  np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
  np.testing.assert_allclose(metrics["is_masked"], 2 / 9, rtol=1e-6)
  _, mask, _ = prime_rl.correction({"eps": 0.3})(*arrays)
  np.testing.assert_array_equal(mask, [[0, 0, 1, 0, 1], [1, 1, 1, 0, 1]])
  _, mask, metrics = prime_rl.correction({"type": "ppo"})(
    *arrays, advantages=advantages
  )
  np.testing.assert_array_equal(mask, _MASK)
  # A > 0 above 1.2: ratios 4 and 1.3; A < 0 below 0.8: ratio 0.1
  np.testing.assert_allclose(metrics["is_clipped"], 3 / 9, rtol=1e-6)
  np.testing.assert_allclose(metrics["ratio_capped"], 1 / 9, rtol=1e-6)
  _, mask, metrics = prime_rl.correction({"type": "cispo"})(*arrays)
  np.testing.assert_array_equal(mask, _MASK)
  np.testing.assert_allclose(metrics["is_clipped"], 1 / 9, rtol=1e-6)


def test_score_centering_takes_the_expected_score_out_of_the_gradient():
  """Two tokens, p = (0.6, 0.4), q = (0.5, 0.5), padding behind; A = 2.

  Summed over draws from q, the update of the logits is 2 E_q[(p/q) score] less itself.
  """
  logits = jnp.log(jnp.array([0.6, 0.4]))
  sampler = jnp.log(jnp.array([0.5, 0.5]))
  fn = prime_rl.policy_loss({"score_centering": True})

  def objective(logits, token):
    logp = jax.nn.log_softmax(logits)
    support = jnp.append(logp, 0.0)[None, None]
    drawn = jnp.append(sampler, -jnp.inf)[None, None]
    return fn(
      logp[token][None, None],
      sampler[token][None, None],
      jnp.array([2.0]),
      jnp.ones((1, 1)),
      support_logp=support,
      sampler_support_logp=drawn,
    )[0]

  grads = [jax.grad(objective)(logits, token) for token in (0, 1)]
  np.testing.assert_allclose(0.5 * grads[0] + 0.5 * grads[1], 0.0, atol=1e-6)
  # Token 0: -2 (0.6 / 0.5) (0.4, -0.4), and a centre of 2 E_p[score] = 0.
  np.testing.assert_allclose(grads[0], [-0.96, 0.96], rtol=1e-5)
  with pytest.raises(ValueError, match="score_centering needs support_logp="):
    fn(logits[None], sampler[None], jnp.ones(1), jnp.ones((1, 2)))


@pytest.mark.parametrize(
  ("config", "names"),
  [
    ({}, []),
    ({"type": "icepop"}, ["reject"]),
    ({"type": "ppo"}, []),
    ({"type": "cispo"}, []),
  ],
)
def test_native_chain(config, names):
  stages = prime_rl.native(config).stages
  if not config:
    assert len(stages) == 1 and not stages[0].needs
  else:
    assert [stage.name for stage in stages] == names
