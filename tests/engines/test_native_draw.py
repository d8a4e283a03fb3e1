"""Drawing by running sums, against the exact law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.engines.native.draw import GREEDY, Law, draw, inverse_cdf
from tis_jax.logprobs import logprobs_from_logits


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 1000])
def test_every_token_comes_as_often_as_its_probability(vocabulary):
  samples = 40_000
  mass = np.random.default_rng(vocabulary).gamma(0.7, size=vocabulary)
  mass[::5] = 0 if vocabulary > 5 else mass[::5]
  law = mass / mass.sum()
  drawn = jax.jit(inverse_cdf)(
    jnp.broadcast_to(jnp.float32(mass), (samples, vocabulary)), keys(samples)
  )
  counts = np.bincount(drawn, minlength=vocabulary)
  assert len(counts) == vocabulary and not counts[law == 0].any()
  there = law > 0
  chi_square = ((counts - samples * law)[there] ** 2 / (samples * law[there])).sum()
  freedom = there.sum() - 1
  # Four standard deviations of a chi-square, and a little for the small ones.
  assert chi_square <= freedom + 4 * np.sqrt(2 * freedom) + 5


def test_a_token_of_no_probability_is_never_drawn():
  # Sums of such numbers, added up in pairs, fall here and there by a rounding.
  rng = np.random.default_rng(0)
  mass = np.float32(rng.random((512, 700)) * (rng.random((512, 700)) < 0.3))
  mass[:, -300:] = 0
  drawn = np.asarray(jax.jit(inverse_cdf)(mass, keys(512)))
  assert (np.take_along_axis(mass, drawn[:, None], 1) > 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_log_prob_is_the_definition(temperature):
  # Logits as large as these lose digits when they are divided before the subtraction.
  logits = 1e3 + 5 * jax.random.normal(jax.random.key(1), (6, 300))
  out = draw(Law(temperature, top_logprobs=3), logits, keys(6))
  want = logprobs_from_logits(logits, out.tokens, temperature=temperature, top_k=3)
  np.testing.assert_allclose(out.sampler_logp, want.logp, atol=2e-6)
  np.testing.assert_array_equal(out.top_tokens, want.top_k.tokens)
  np.testing.assert_allclose(out.top_logp, want.top_k.logp, atol=2e-6)
  assert out.kept_mass is None and out.kept_tokens is None


def test_greedy_is_the_largest_logit_at_temperature_1():
  logits = jax.random.normal(jax.random.key(2), (6, 300))
  out = draw(GREEDY, logits, keys(6))
  np.testing.assert_array_equal(out.tokens, logits.argmax(axis=1))
  want = jax.nn.log_softmax(logits).max(axis=1)
  np.testing.assert_allclose(out.sampler_logp, want, atol=2e-6)
