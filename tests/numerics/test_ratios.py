"""The pure ratio functions against float64, one token at a time."""

import correction_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.numerics import ratios, units


def test_log_ratio_masks_before_it_subtracts_and_does_not_clamp():
  old = jnp.array([[0.0, -1.0, jnp.nan, -50.0, -jnp.inf, -jnp.inf]])
  sampler = jnp.array([[-0.5, -1.0, 2.0, 0.0, jnp.inf, -1.0]])
  mask = jnp.array([[1, 1, 0, 1, 0, 1]], jnp.int8)
  found = ratios.log_ratio(old, sampler, mask)
  np.testing.assert_array_equal(found, [[0.5, 0.0, 0.0, -50.0, 0.0, -1e4]])
  np.testing.assert_array_equal(ratios.ratio(found)[0, 3], np.float32(np.exp(-20.0)))


def test_log_ratio_of_bf16_is_the_fp32_difference():
  old = jnp.array([-1.0078125, -2.0], jnp.bfloat16)
  sampler = jnp.array([-1.0, -2.015625], jnp.bfloat16)
  found = ratios.log_ratio(old, sampler, jnp.ones(2))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [-0.0078125, 0.015625])


def test_gradient_through_masked_garbage_is_zero():
  def loss(old):
    return ratios.ratio(ratios.log_ratio(old, jnp.zeros(3), jnp.array([1, 0, 0]))).sum()

  gradient = jax.grad(loss)(jnp.array([0.1, jnp.nan, jnp.inf]))
  np.testing.assert_allclose(gradient, [np.exp(0.1), 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "k3_reverse"])
def test_divergences_are_precise_for_small_and_large_log_ratios(name):
  d = np.array([-20, -3, -0.3, -1e-2, -1e-3, 0, 1e-4, 1e-2, 0.3, 3, 20], np.float32)
  d64 = d.astype(np.float64)
  rho = np.exp(d64)
  exact = {
    "k1": -d64,
    "k2": d64**2 / 2,
    "k3": np.expm1(d64) - d64,
    "k3_reverse": rho * d64 - np.expm1(d64),
  }[name]
  found = np.asarray(getattr(ratios, name)(jnp.asarray(d)))
  # The rounding of expm1 alone is 1e-7 of d, which k3 = d^2 / 2 + ... magnifies.
  allowed = 3e-7 * np.maximum(np.abs(d64), np.abs(exact)) + 1e-30
  np.testing.assert_array_less(np.abs(found - exact), allowed)
  if name != "k1":
    assert (found >= 0).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_units_are_those_of_the_definition(packed, turns):
  data = oracles.rollouts(seed=3, packed=packed)
  find = jax.jit(units.unit_starts, static_argnames="turns")
  starts = find(data.mask, data.segment_ids, turns=turns)
  owner = oracles.unit_of(data, turns)
  expected = np.zeros_like(data.mask)
  for unit in range(owner.max() + 1):
    b, t = np.argwhere(owner == unit)[0]
    expected[b, t] = True
  np.testing.assert_array_equal(starts, expected)
  x = np.where(data.mask, np.random.default_rng(0).random(owner.shape), 0)
  x, total = x.astype(np.float32), None
  for found, reduce in ((units.unit_sum, np.sum), (units.unit_max, np.max)):
    wanted = np.zeros_like(x)
    for b, t in np.argwhere(data.mask):
      wanted[b, t] = reduce(x[b][owner[b] == owner[b, t]])
    spread = np.asarray(jax.jit(found)(x, starts))
    got = np.where(data.mask, spread, 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    total = spread if reduce is np.sum else total
  # Every token of a unit holds the same bits, so that one bound treats them alike.
  for unit in range(owner.max() + 1):
    assert len(set(total[owner == unit].tolist())) == 1


def test_mean_over_a_unit_with_nothing_in_it_is_zero():
  x = jnp.array([[1.0, 3.0], [5.0, 7.0]])
  mask = jnp.array([[1, 1], [0, 0]])
  np.testing.assert_array_equal(units.unit_mean(x, mask), [[2.0], [0.0]])
