"""KL penalties: values, gradients, and expectations over an enumerated vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tis_jax.losses import (
  KL_KINDS,
  adaptive_kl_coefficient,
  kl_in_reward,
  kl_penalty,
  weighted_kl_penalty,
)

RNG = np.random.default_rng(0)
LOGP = -RNG.gamma(2.0, 0.6, (3, 4)).astype(np.float32)
REF = (LOGP + 0.5 * RNG.normal(size=LOGP.shape)).astype(np.float32)
D = LOGP.astype(np.float64) - REF
VALUES = {
  "k1": D,
  "k2": D**2 / 2,
  "k3": np.exp(-D) - 1 + D,
  "abs": np.abs(D),
}
SLOPES = {"k1": np.ones_like(D), "k2": D, "k3": 1 - np.exp(-D), "abs": np.sign(D)}


@pytest.mark.parametrize("kind", KL_KINDS)
def test_values_and_gradients(kind):
  value, pull = jax.vjp(lambda x: kl_penalty(x, REF, kind), LOGP)
  np.testing.assert_allclose(
    value, VALUES[kind.removesuffix("+")], rtol=2e-5, atol=1e-7
  )
  slope = SLOPES["k2" if kind.endswith("+") else kind]
  np.testing.assert_allclose(pull(jnp.ones_like(value))[0], slope, rtol=2e-5, atol=1e-6)


def test_k3_keeps_its_digits_where_policies_agree():
  d = jnp.full((1, 1), 1e-4)
  np.testing.assert_allclose(kl_penalty(d, 0 * d, "k3"), 5e-9, rtol=1e-3)


@pytest.mark.parametrize("kind", KL_KINDS)
def test_garbage_under_the_mask_is_inert(kind):
  mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0] * 4])
  dirty = np.where(mask, LOGP, np.nan)
  run = jax.value_and_grad(lambda x: kl_penalty(x, dirty, kind, mask).sum())
  value, grad = run(dirty)
  assert np.isfinite(value) and np.isfinite(grad).all()
  assert (np.asarray(grad)[mask == 0] == 0).all()


def test_weighted_penalty_gradient_is_the_derivative_of_its_value():
  anchor = jnp.asarray(LOGP - 0.2)
  for kind in ("k1", "k2", "k3"):
    f = lambda x, kind=kind: weighted_kl_penalty(x, REF, anchor, kind)
    check_grads(f, (LOGP,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def categorical(seed, vocabulary=5):
  return jnp.asarray(np.random.default_rng(seed).normal(size=vocabulary), jnp.float32)


def expected(f, logits, sampled_from):
  """Sum over the vocabulary of mu(v) f(log pi(v))."""
  logp = jax.nn.log_softmax(logits)[None]
  return (jax.nn.softmax(sampled_from) * f(logp)[0]).sum()


def true_kl(logits, ref):
  logp, ref_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
  return (jnp.exp(logp) * (logp - ref_logp)).sum()


def test_k1_and_k3_are_unbiased_on_policy():
  policy, ref = categorical(1), categorical(2)
  ref_logp = jax.nn.log_softmax(ref)[None]
  for kind in ("k1", "k3"):
    got = expected(lambda logp, k=kind: kl_penalty(logp, ref_logp, k), policy, policy)
    np.testing.assert_allclose(got, true_kl(policy, ref), rtol=1e-5)


def test_k2_and_straight_through_forms_have_the_gradient_of_the_kl():
  policy, ref = categorical(1), categorical(2)
  ref_logp = jax.nn.log_softmax(ref)[None]
  want = jax.grad(true_kl)(policy, ref)
  for kind in ("k2", "k1+", "k3+"):
    f = lambda logp, k=kind: kl_penalty(logp, ref_logp, k)
    got = jax.grad(lambda logits, f=f: expected(f, logits, policy))(policy)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  plain = jax.grad(
    lambda logits: expected(lambda x: kl_penalty(x, ref_logp, "k1"), logits, policy)
  )(policy)
  np.testing.assert_allclose(plain, np.zeros(5), atol=1e-6)


def test_weighted_penalty_is_unbiased_off_policy_in_value_and_gradient():
  policy, ref, sampler = categorical(1), categorical(2), categorical(3)
  ref_logp, mu = (jax.nn.log_softmax(x)[None] for x in (ref, sampler))
  want, want_grad = jax.value_and_grad(true_kl)(policy, ref)
  for kind in ("k1", "k3"):
    f = lambda logp, k=kind: weighted_kl_penalty(logp, ref_logp, mu, k)
    got, grad = jax.value_and_grad(lambda x, f=f: expected(f, x, sampler))(policy)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-6)


def test_k3_weighted_has_no_gradient_noise_where_policy_is_the_reference():
  f = lambda x, kind: weighted_kl_penalty(x, LOGP, LOGP - 0.3, kind).sum()
  assert (jax.grad(f)(jnp.asarray(LOGP), "k3") == 0).all()
  assert (jax.grad(f)(jnp.asarray(LOGP), "k1") != 0).all()


def test_kl_in_reward_subtracts_without_gradient():
  rewards = np.zeros_like(LOGP)
  mask = np.ones_like(LOGP, bool)
  mask[0, 1:] = False
  got = kl_in_reward(rewards, LOGP, REF, 0.5, kind="k1", mask=mask)
  np.testing.assert_allclose(got, np.where(mask, -0.5 * D, 0.0), rtol=1e-5)
  grad = jax.grad(lambda x: kl_in_reward(rewards, x, REF, 0.5).sum())(LOGP)
  assert (grad == 0).all()


def test_adaptive_coefficient_steers_and_saturates():
  step = lambda kl: adaptive_kl_coefficient(0.1, kl, rows=5000, target=0.1)
  np.testing.assert_allclose(step(0.1), 0.1, rtol=1e-6)
  np.testing.assert_allclose(step(0.11), 0.1 * 1.05, rtol=1e-6)
  np.testing.assert_allclose([step(9.0), step(0.0)], [0.11, 0.09], rtol=1e-6)
  coefficient = 1.0
  for _ in range(100):  # a horizon of rows with an error of 20 percent
    coefficient = adaptive_kl_coefficient(coefficient, 0.12, rows=100)
  np.testing.assert_allclose(coefficient, np.exp(0.2), rtol=1e-3)


def test_bad_kinds_are_named():
  with pytest.raises(ValueError, match="kind must be one of"):
    kl_penalty(LOGP, REF, "k4")
  with pytest.raises(ValueError, match="straight-through"):
    weighted_kl_penalty(LOGP, REF, LOGP, "k3+")


def test_impossible_coefficients_are_named():
  with pytest.raises(ValueError, match="coefficient must be at least 0"):
    kl_in_reward(np.zeros_like(LOGP), LOGP, REF, -0.1)
  with pytest.raises(ValueError, match="target must be above 0"):
    adaptive_kl_coefficient(0.1, 0.1, rows=1, target=0.0)
  with pytest.raises(ValueError, match="horizon must be above 0"):
    adaptive_kl_coefficient(0.1, 0.1, rows=1, horizon=float("nan"))
