"""The critic's loss and the entropy bonus."""

import jax
import numpy as np
import pytest

from tis_jax import losses
from tis_jax.numerics.metrics import finalize

RNG = np.random.default_rng(0)
VALUES, OLD, RETURNS = RNG.normal(size=(3, 4, 5)).astype(np.float32)
MASK = RNG.random((4, 5)) < 0.6
MASK[1] = False


def test_value_loss_and_gradient_equal_the_oracle():
  dirty = [np.where(MASK, x, np.nan) for x in (VALUES, OLD, RETURNS)]
  f = lambda v: losses.value(v, *dirty[1:], MASK, clip=0.3)
  grad, (token_loss, metrics) = jax.grad(lambda v: (f(v)[0].sum(), f(v)), has_aux=True)(
    dirty[0]
  )
  bounded = np.clip(VALUES, OLD - 0.3, OLD + 0.3)
  free, held = (VALUES - RETURNS) ** 2, (bounded - RETURNS) ** 2
  want = np.where(MASK, 0.5 * np.maximum(free, held), 0.0)
  np.testing.assert_allclose(token_loss, want, rtol=1e-5)
  # A clipped value that is the worse of the two has no gradient.
  inside = bounded == VALUES
  slope = np.where(
    free >= held, VALUES - RETURNS, np.where(inside, bounded - RETURNS, 0)
  )
  np.testing.assert_allclose(grad, np.where(MASK, slope, 0.0), rtol=1e-5, atol=1e-6)
  numbers = finalize(metrics)
  np.testing.assert_allclose(
    numbers["value/error_squared"], free[MASK].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    numbers["value/clipped"], (held > free)[MASK].mean(), rtol=1e-5
  )


def test_value_loss_without_clip_is_half_the_squared_error():
  token_loss, _ = losses.value(VALUES, OLD, RETURNS, clip=None)
  np.testing.assert_allclose(token_loss, 0.5 * (VALUES - RETURNS) ** 2, rtol=1e-5)
  with pytest.raises(ValueError, match="clip must be at least 0"):
    losses.value(VALUES, OLD, RETURNS, clip=-1.0)
  with pytest.raises(ValueError, match="returns must have shape"):
    losses.value(VALUES, OLD, RETURNS[:, :1])


def test_entropy_loss_is_the_negative_entropy_under_the_mask():
  entropy = np.where(MASK, np.abs(VALUES), np.inf)
  token_loss, metrics = losses.entropy(entropy, MASK)
  np.testing.assert_array_equal(token_loss, np.where(MASK, -np.abs(VALUES), 0.0))
  want = np.abs(VALUES)[MASK].mean()
  np.testing.assert_allclose(finalize(metrics)["policy/entropy"], want, rtol=1e-6)
