"""Sums are of raw differences, clamped once: a token at -30 and one at +30 cancel."""

import jax.numpy as jnp
import numpy as np
import pytest

import tis_jax as tis
from tis_jax import losses

# They sum to 1, and clamped token by token to -19 + 20.
D = jnp.array([[-30.0, 30.0, 1.0]])
OLD = jnp.array([[-31.0, -0.5, -0.5]])
SAMPLER = OLD - D
MASK = jnp.ones((1, 3), bool)


@pytest.mark.parametrize(
  ("level", "log_weight"),
  [
    ("sequence", [1.0, 1.0, 1.0]),
    ("geometric", [1 / 3] * 3),
    ("root", [3**-0.5] * 3),
    ("prefix", [-20.0, 0.0, 1.0]),
    ("min_prefix", [-20.0, 0.0, -20.0]),
    ("turn", [1.0, 1.0, 1.0]),
    ("turn_geometric", [1 / 3] * 3),
    ("token", [-20.0, 20.0, 1.0]),
  ],
)
def test_levels_sum_before_they_clamp(level, log_weight):
  for metrics in ("none", "core"):  # with and without the shared sums
    out = tis.chain(tis.importance(level), metrics=metrics)(OLD, SAMPLER, MASK)
    np.testing.assert_allclose(jnp.log(out.weight)[0], log_weight, rtol=1e-5, atol=1e-5)


def test_a_packed_row_sums_before_it_clamps():
  out = tis.chain(tis.importance("sequence"))(
    OLD, SAMPLER, MASK, segment_ids=jnp.zeros((1, 3), jnp.int32)
  )
  np.testing.assert_allclose(out.weight, np.e, rtol=1e-5)


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_divergences_without_an_exponential_sum_before_they_compare(kind):
  exact = {"k1": -1.0, "k2": (900.0 + 900.0 + 1.0) / 2}[kind]
  accepts = lambda high: bool(
    tis.chain(tis.reject_divergence(high, kind=kind, reduce="sum"))(
      OLD, SAMPLER, MASK
    ).mask.any()
  )
  assert accepts(abs(exact) + 0.01) and not accepts(abs(exact) - 0.01)


def test_an_infinite_difference_leaves_every_number_finite():
  old = jnp.array([[-jnp.inf, -1.0], [-1.0, -1.0]])
  sampler = jnp.array([[-1.0, -jnp.inf], [-1.0, -jnp.inf]])
  for level in ("token", "sequence", "geometric", "prefix"):
    out = tis.chain(tis.truncate(2.0, level=level), metrics="full")(
      old, sampler, jnp.ones((2, 2), bool)
    )
    assert np.isfinite(out.weight).all()
    assert all(np.isfinite(x).all() for x in tis.finalize(out.metrics).values())


def test_sequence_losses_sum_before_they_clamp():
  one = jnp.ones(1)
  # exp(mean) = exp(1/3), clipped at 1.5.
  (found,) = losses.gspo(OLD, SAMPLER, one, clip_low=0.5, clip_high=0.5)[0]
  np.testing.assert_allclose(found, -np.exp(1 / 3), rtol=1e-5)
  # W = e, weight W^2 exp(3 (1 - W)), times -logp.
  (found,) = losses.vespo(OLD, SAMPLER, one)[0]
  np.testing.assert_allclose(found, -np.exp(2 + 3 * (1 - np.e)) * OLD[0], rtol=1e-4)
  (found,) = losses.topr(OLD, SAMPLER + 2 / 3, -one)[0]  # product exp(-1)
  np.testing.assert_allclose(found, np.exp(-1.0) * OLD[0], rtol=1e-4)


def test_what_is_not_exponentiated_is_not_clamped():
  found = losses.dro(OLD, SAMPLER, jnp.zeros(1), beta=1.0)[0]
  np.testing.assert_allclose(found, 0.5 * D**2, rtol=1e-5)
  found = losses.kl_penalty(OLD, SAMPLER, "k2")
  np.testing.assert_allclose(found, 0.5 * D**2, rtol=1e-5)
