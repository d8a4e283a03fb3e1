"""The critic's head: starts at zero and learns what its hidden states can say."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import losses
from tis_jax.models.value_head import ValueHead

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(4, 5, 3)).astype(np.float32)
MASK = RNG.random((4, 5)) < 0.7
RETURNS = HIDDEN @ np.array([1.0, -2.0, 0.5], np.float32) + 0.3


def test_starts_at_zero_and_returns_fp32():
  values = ValueHead(3)(jnp.asarray(HIDDEN, jnp.bfloat16))
  assert values.dtype == jnp.float32 and (values == 0).all()


def test_learns_returns_that_are_linear_in_the_hidden_states():
  graph, params = nnx.split(ValueHead(3))

  @jax.jit
  def step(params):
    def loss(params):
      values = nnx.merge(graph, params)(HIDDEN)
      return losses.aggregate(
        losses.value(values, values, RETURNS, MASK, clip=None)[0], MASK
      )

    return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))

  for _ in range(200):
    params = step(params)
  values = nnx.merge(graph, params)(HIDDEN)
  np.testing.assert_allclose(values, RETURNS, atol=2e-2)
