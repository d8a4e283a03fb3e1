"""Gradients where every token is before its first update: at a ratio of exactly 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import losses

ADVANTAGES = jnp.array([[1.0, 2.0, -2.0]])
LOGP = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))


def gradient(loss):
  return np.asarray(jax.grad(lambda logp: loss(logp).sum())(LOGP))


def test_kl_cov_does_not_push_tokens_that_have_not_moved():
  penalised = lambda x: losses.kl_cov(x, LOGP, ADVANTAGES, select=1.0)[0]
  np.testing.assert_allclose(gradient(penalised), -ADVANTAGES, rtol=1e-6)


@pytest.mark.parametrize("kind", losses.KL_KINDS)
def test_a_policy_at_its_reference_is_not_pulled(kind):
  want = 1.0 if kind == "k1" else 0.0  # k1 is linear: its gradient is noise everywhere
  np.testing.assert_allclose(
    gradient(lambda x: losses.kl_penalty(x, LOGP, kind)), want, atol=1e-7
  )


@pytest.mark.parametrize("widths", [(0.2, 0.28), (0.0, 0.0), (0.0, 0.2), (0.2, 0.0)])
def test_ppo_and_gspo_begin_as_the_policy_gradient(widths):
  """A bound is part of its range: tokens that sit on it still learn."""
  low, high = widths
  ppo = lambda x: losses.ppo(x, LOGP, ADVANTAGES, clip_low=low, clip_high=high)[0]
  np.testing.assert_allclose(gradient(ppo), -ADVANTAGES, rtol=1e-6)
  one = jnp.ones(1)
  gspo = lambda x: losses.gspo_token(x, LOGP, one, clip_low=low, clip_high=high)[0]
  np.testing.assert_allclose(gradient(gspo), -1.0, rtol=1e-6)
  gmpo = lambda x: losses.gmpo(x, LOGP, one, clip_low=low, clip_high=high)[0]
  np.testing.assert_allclose(gradient(gmpo), -1.0, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.POLICY_LOSSES))
def test_every_ratio_loss_begins_as_the_policy_gradient(name):
  settings = {
    "clip_cov": {"key": jax.random.key(0), "select": 0.0, "covariance_low": 1e9},
    "dro": {"beta": 0.1},
    "sapo": {"temperature_negative": 1.0},
  }.get(name, {})
  loss = functools.partial(losses.POLICY_LOSSES[name], **settings)
  given = {"advantages": jnp.ones(1), "old_logp": LOGP, "sampler_logp": LOGP}
  found = gradient(lambda x: losses.call_loss(loss, logp=x, **given)[0])
  # One advantage for the whole sequence, so that means over it are its own.
  want = -3.0 if name == "luspo" else -1.0
  np.testing.assert_allclose(found, want, rtol=1e-5)
