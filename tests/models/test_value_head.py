"""The critic's head: starts at zero and learns what its hidden states can say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import losses
from tis_jax.models import (
  DecoderConfig,
  critic_graph,
  critic_params,
  decoder_graph,
  flatten,
  init_params,
)
from tis_jax.models.value_head import ValueHead

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(4, 5, 3)).astype(np.float32)
MASK = RNG.random((4, 5)) < 0.7
RETURNS = HIDDEN @ np.array([1.0, -2.0, 0.5], np.float32) + 0.3


def test_starts_at_zero_and_returns_fp32():
  values = ValueHead(3)(jnp.asarray(HIDDEN, jnp.bfloat16))
  assert values.dtype == jnp.float32 and (values == 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_critic_starts_as_the_policy_without_its_output_matrix(tied):
  config = DecoderConfig(
    vocab_size=19, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, tie_embeddings=tied,
  )  # fmt: skip
  graph, params = decoder_graph(config), init_params(config, jax.random.key(0))
  critic = critic_params(params)
  assert flatten(critic)["decoder/embedding"] is flatten(params)["embedding"]
  assert "decoder/output" not in flatten(critic)
  tokens = jnp.array([[3, 1, 4, 0]])
  segment_ids = jnp.array([[1, 1, 1, 0]])
  model = nnx.merge(critic_graph(graph), critic)
  assert (model(tokens) == 0).all()
  weight = jnp.arange(16.0)
  model.head.weight[...] = weight
  hidden, _ = nnx.merge(graph, params)(tokens, segment_ids_BS=segment_ids)
  np.testing.assert_allclose(
    model(tokens, segment_ids_BS=segment_ids), hidden @ weight, rtol=1e-4
  )


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
