"""Mixtures of experts on a mesh, in few bits, and lowered for accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from test_decoder import MIXTURE, random_params
from test_lora import spelt_out

from tis_jax import models

GRAPH = models.decoder_graph(MIXTURE)
TOKENS = np.random.default_rng(7).integers(0, MIXTURE.vocab_size, (8, 6))


def loss(params, tokens):
  model = nnx.merge(GRAPH, params)
  logp = jax.nn.log_softmax(model(tokens)[0] @ model.head())
  return jnp.mean(logp[:, :, 3]), logp


@pytest.mark.slow
def test_a_mixture_on_a_mesh_is_that_of_one_device():
  params = random_params(MIXTURE)
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, logp), gradient = step(params, TOKENS)
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, models.params_sharding(params, mesh))
    (_, sharded), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      placed, TOKENS
    )
  np.testing.assert_allclose(sharded, logp, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, gradient
  )
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found))
  split = models.flatten(placed)["layers/mlp/expert_down"]
  assert tuple(split.sharding.spec) == (None, None, "tensor", "fsdp")


@pytest.mark.slow
def test_experts_may_have_few_bits():
  pytest.importorskip("qwix")
  params = random_params(MIXTURE)
  low = models.quantize(params, "int8")
  kept = models.flatten(low)
  assert kept["layers/mlp/expert_down"].scale.shape == (2, 5, 1, 32)
  assert kept["layers/mlp/router"].dtype == jnp.float32
  spelt = spelt_out(low, GRAPH)
  logp = jax.jit(lambda params: loss(params, TOKENS)[1])
  np.testing.assert_allclose(logp(low), logp(spelt), atol=1e-5)
  assert np.abs(logp(low) - logp(params)).mean() > 1e-4


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_mixture_lowers_for_accelerators(platform):
  leaves, tree = jax.tree.flatten(models.abstract_params(MIXTURE))

  def gradient(leaves, tokens):
    params = jax.tree.unflatten(tree, leaves)
    return jax.tree.leaves(jax.grad(lambda p: loss(p, tokens)[0])(params))

  export = jax.export.export(jax.jit(gradient), platforms=[platform])
  assert "ragged_dot" in export(leaves, TOKENS).mlir_module()


def test_adapters_stand_beside_the_attention_of_a_mixture():
  lora = models.LoRA(rank=2, targets=("query", "out"))
  adapter = models.flatten(models.abstract_adapter(MIXTURE, lora))
  assert len(adapter) == 4
  with pytest.raises(ValueError, match=r"\['down', 'gate', 'up'\] are no matrices"):
    models.abstract_adapter(MIXTURE, models.LoRA(rank=2))
