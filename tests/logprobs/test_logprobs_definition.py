"""`logprobs_from_logits`: the definition, against float64, optax and its extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logprobs_oracle import log_softmax

from tis_jax.logprobs import logprobs_from_logits

_SHAPE, _VOCAB = (3, 4), 37


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(size=(*_SHAPE, _VOCAB)).astype(np.float32) * 4


@pytest.fixture(scope="module")
def targets():
  return np.random.default_rng(1).integers(_VOCAB, size=_SHAPE).astype(np.int32)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0])
def test_equals_float64(logits, targets, temperature):
  out = logprobs_from_logits(logits, targets, temperature=temperature, top_k=5)
  log_p = log_softmax(logits.astype(np.float64) / np.float64(np.float32(temperature)))
  at_target = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(out.logp, at_target, atol=1e-5)
  np.testing.assert_allclose(out.entropy, -(np.exp(log_p) * log_p).sum(-1), atol=1e-5)
  order = np.argsort(-log_p, axis=-1)[..., :5]
  np.testing.assert_array_equal(out.top_k.tokens, order)
  np.testing.assert_allclose(
    out.top_k.logp, np.take_along_axis(log_p, order, -1), atol=1e-5
  )
  assert all(x.dtype == jnp.float32 for x in out[:3])


def test_the_sum_of_squared_probabilities_equals_float64(logits, targets):
  read = lambda x: (
    logprobs_from_logits(
      x, targets, temperature=0.7, sum_squared_probs=True
    ).sum_squared_probs
  )
  log_p = log_softmax(logits.astype(np.float64) / np.float64(np.float32(0.7)))
  np.testing.assert_allclose(read(logits), np.exp(2 * log_p).sum(-1), rtol=1e-6)
  # Measured from the maximum: a certain token and a thousand equal ones.
  certain = jnp.array([[1e4, 0.0, -jnp.inf]])
  equal = jnp.full((1, 1000), -1e4)
  for x, want in ((certain, 1.0), (equal, 1e-3)):
    out = logprobs_from_logits(x, np.zeros(1, np.int32), sum_squared_probs=True)
    np.testing.assert_allclose(out.sum_squared_probs, want, rtol=1e-6)
  gradient = jax.grad(lambda x: read(x).sum())(logits)
  np.testing.assert_array_equal(gradient, 0.0)
  assert logprobs_from_logits(logits, targets).sum_squared_probs is None


def test_equals_optax_with_gradient(logits, targets):
  ours = lambda x: -logprobs_from_logits(x, targets).logp
  theirs = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, targets)
  np.testing.assert_allclose(ours(logits), theirs(logits), atol=1e-5)
  gradients = [jax.grad(lambda x, f=f: f(x).sum())(logits) for f in (ours, theirs)]
  np.testing.assert_allclose(*gradients, atol=1e-6)


def test_bf16_logits_are_converted_before_anything_else(logits, targets):
  narrow = jnp.asarray(logits, jnp.bfloat16)
  log_p = log_softmax(np.asarray(narrow, np.float64))
  at_target = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    logprobs_from_logits(narrow, targets).logp, at_target, atol=1e-5
  )


def test_temperature_per_token(logits, targets):
  temperature = np.linspace(0.5, 2, targets.size, dtype=np.float32).reshape(_SHAPE)
  out = logprobs_from_logits(logits, targets, temperature=temperature)
  for at in ((0, 0), (2, 3)):
    one = logprobs_from_logits(
      logits[at][None], targets[at][None], temperature=float(temperature[at])
    )
    np.testing.assert_allclose(out.logp[at], one.logp[0], rtol=1e-6)


def test_masked_entries_have_no_probability_and_finite_gradients(logits, targets):
  allowed = np.ones(_VOCAB, bool)
  allowed[::3] = False
  targets = np.where(targets % 3 == 0, 1, targets)

  def loss(logits):
    out = logprobs_from_logits(logits, targets)
    return out.logp.sum() + out.entropy.sum() + out.log_normalizer.sum(), out

  masked = np.where(allowed, logits, -np.inf)
  gradient, out = jax.grad(loss, has_aux=True)(masked)
  small, want = jax.grad(
    lambda x: (lambda o: (o.logp.sum() + o.entropy.sum() + o.log_normalizer.sum(), o))(
      logprobs_from_logits(x, np.cumsum(allowed)[targets] - 1)
    ),
    has_aux=True,
  )(logits[..., allowed])
  np.testing.assert_allclose(out.logp, want.logp, atol=1e-6)
  np.testing.assert_allclose(out.entropy, want.entropy, atol=1e-6)
  np.testing.assert_allclose(gradient[..., allowed], small, atol=1e-6)
  np.testing.assert_array_equal(gradient[..., ~allowed], 0.0)


def test_large_logits_lose_no_digits():
  logits = np.array([[1e4, 1e4 - 1, 1e4 - 3]], np.float32)
  log_p = log_softmax(logits.astype(np.float64))
  out = logprobs_from_logits(logits, np.array([2]))
  np.testing.assert_allclose(out.logp, log_p[:, 2], atol=1e-6)
  np.testing.assert_allclose(out.entropy, -(np.exp(log_p) * log_p).sum(-1), atol=1e-6)


def test_one_token_vocabulary():
  out = logprobs_from_logits(np.array([[7.0]], np.float32), np.array([0]), top_k=1)
  np.testing.assert_allclose(
    [out.logp[0], out.entropy[0], out.log_normalizer[0]], [0, 0, 7]
  )


@pytest.mark.parametrize("target", [-1, -100, _VOCAB])
def test_a_target_outside_the_vocabulary_is_nan(logits, target):
  out = logprobs_from_logits(logits, np.full(_SHAPE, target, np.int32))
  assert np.isnan(out.logp).all() and np.isfinite(out.entropy).all()


def test_refusals(logits, targets):
  with pytest.raises(ValueError, match="do not match"):
    logprobs_from_logits(logits, targets[0])
  with pytest.raises(ValueError, match="not positive"):
    logprobs_from_logits(logits, targets, temperature=0)
  with pytest.raises(ValueError, match="kept_tokens"):
    logprobs_from_logits(logits, targets, kept_tokens=np.zeros((3, 2), np.int32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-50, 50), st.floats(0.05, 20))
def test_invariants(seed, shift, temperature):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(_VOCAB, _VOCAB)).astype(np.float32) * 3
  every = np.arange(_VOCAB, dtype=np.int32)
  logits[:] = logits[0]
  out = logprobs_from_logits(logits, every, temperature=temperature)
  moved = logprobs_from_logits(
    logits + np.float32(shift), every, temperature=temperature
  )
  p = np.exp(np.asarray(out.logp, np.float64))
  assert abs(p.sum() - 1) < 1e-5
  assert abs(-(p * np.asarray(out.logp)).sum() - out.entropy[0]) < 1e-4
  assert -1e-5 <= out.entropy[0] <= np.log(_VOCAB) + 1e-5
  np.testing.assert_allclose(out.logp, moved.logp, atol=2e-5 / min(temperature, 1))
