"""The losses' gradients against the true one of an enumerable policy.

The policy has a logit for every prefix and next token, so that all its sequences can be
listed and J = sum_y pi(y) R(y) be differentiated exactly. The expectation of a loss is
then a sum over the same list, weighted by the probability that it is sampled.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.losses import POLICY_LOSSES, aggregate, call_loss

VOCABULARY, LENGTH = 3, 3
SEQUENCES = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
PREFIXES = (VOCABULARY**LENGTH - 1) // (VOCABULARY - 1)
RNG = np.random.default_rng(0)
THETA = RNG.normal(size=(PREFIXES, VOCABULARY)).astype(np.float32)
SAMPLER = (THETA + 0.3 * RNG.normal(size=THETA.shape)).astype(np.float32)
REWARDS = RNG.normal(size=len(SEQUENCES)).astype(np.float32)


def prefix_numbers():
  """`[27, 3]`: which row of the table each token's distribution stands in."""
  offsets = np.cumsum([0, *(VOCABULARY**t for t in range(LENGTH - 1))])
  code = np.zeros(len(SEQUENCES), int)
  columns = []
  for t in range(LENGTH):
    columns.append(offsets[t] + code)
    code = code * VOCABULARY + SEQUENCES[:, t]
  return np.stack(columns, 1)


ROWS = prefix_numbers()


def log_probs(theta):
  """`[27, 3]` log-probs of every token of every sequence."""
  return jax.nn.log_softmax(theta)[ROWS, SEQUENCES]


def objective(theta):
  return (jnp.exp(log_probs(theta).sum(1)) * REWARDS).sum()


TRUE = jax.grad(objective)(THETA)


@functools.cache
def expected_gradient(name, **options):
  """`(theta, anchor, weight) -> ` minus the gradient of the loss's expectation.

  The expectation is over sequences sampled from `anchor`, another table of logits.
  """
  loss = functools.partial(POLICY_LOSSES[name], **options)

  def scalar(theta, anchor, weight):
    anchor_logp = log_probs(anchor)
    token_loss, _ = call_loss(
      loss,
      logp=log_probs(theta),
      old_logp=anchor_logp,
      sampler_logp=anchor_logp,
      advantages=REWARDS,
      key=jax.random.key(0),
    )
    chance = jnp.exp(anchor_logp.sum(1, keepdims=True))
    mask = np.ones_like(SEQUENCES, bool)
    return -aggregate(token_loss * weight * chance, mask, "token_sum")

  return jax.jit(jax.grad(scalar))


ONES = np.ones((len(SEQUENCES), 1), np.float32)


# Options under which the losses, on policy and so at ratio 1, are the policy gradient.
OPTIONS = {
  "clip_cov": {"covariance_low": 1e6},
  "dro": {"beta": 0.1},
  "gspo": {"clip_low": 0.2, "clip_high": 0.2},
  "gspo_token": {"clip_low": 0.2, "clip_high": 0.2},
  # |d| has a slope of its own on either side of 0, wherever rounding puts it.
  "kl_cov": {"coefficient": 0.0},
  "luspo": {"clip_low": 0.2, "clip_high": 0.2},
}
NAMES = sorted(set(POLICY_LOSSES) - {"cross_entropy"})


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_expectation_is_the_policy_gradient(name):
  got = expected_gradient(name, **OPTIONS.get(name, {}))(THETA, THETA, ONES)
  scale = LENGTH if name == "luspo" else 1.0
  np.testing.assert_allclose(got, scale * TRUE, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_trains_the_policy_off_policy(name):
  """A few steps on a stale sampler raise the true objective."""
  gradient = expected_gradient(name, **OPTIONS.get(name, {}))
  theta = THETA
  for _ in range(5):
    theta = theta + 0.3 * gradient(theta, SAMPLER, ONES)
  assert jnp.isfinite(theta).all()
  assert objective(theta) > objective(THETA) + 0.01


def test_reinforce_with_sequence_weights_is_exact_off_policy():
  log_ratio = (log_probs(THETA) - log_probs(SAMPLER)).sum(1, keepdims=True)
  gradient = expected_gradient("reinforce")
  got = gradient(THETA, SAMPLER, jnp.exp(log_ratio))
  np.testing.assert_allclose(got, TRUE, rtol=2e-4, atol=2e-6)
  without = gradient(THETA, SAMPLER, ONES)
  assert np.abs(without - TRUE).max() > 0.01  # the weights are what makes it exact


def test_token_ratios_are_exact_for_one_step_away_from_the_sampler():
  """The token-level surrogate: one token from the policy, all others the sampler's."""
  sampler_logp = log_probs(SAMPLER)
  others = sampler_logp.sum(1, keepdims=True) - sampler_logp

  def surrogate(theta):
    return (jnp.exp(others + log_probs(theta)) * REWARDS[:, None]).sum()

  got = expected_gradient("importance_sampling")(THETA, SAMPLER, ONES)
  np.testing.assert_allclose(got, jax.grad(surrogate)(THETA), rtol=2e-4, atol=2e-6)


def test_cross_entropy_raises_the_likelihood_of_what_it_is_shown():
  best = REWARDS.max() == REWARDS
  mask = np.broadcast_to(best[:, None], SEQUENCES.shape)
  loss = lambda theta: aggregate(
    POLICY_LOSSES["cross_entropy"](log_probs(theta), mask)[0], mask
  )
  theta = THETA - jax.grad(loss)(THETA)
  assert loss(theta) < loss(THETA)
