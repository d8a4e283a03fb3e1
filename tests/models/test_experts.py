"""Mixtures of experts on a mesh, in few bits, and lowered for accelerators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from test_decoder import MIXTURE, random_params, reference
from test_lora import spelt_out

from tis_jax import models
from tis_jax.models.experts import ExpertMatrix, Experts

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


ROUTED = np.random.default_rng(8).permuted(
  np.tile(np.arange(MIXTURE.num_experts), (8, 6, MIXTURE.num_layers, 1)), axis=-1
)[..., : MIXTURE.experts_per_token]


def routed_loss(params, tokens, routed):
  model = nnx.merge(GRAPH, params)
  hidden, _ = model(tokens, routed_BSLE=routed)
  return jax.nn.log_softmax(hidden @ model.head())


def test_tokens_that_are_routed_go_where_they_are_sent():
  params, routed = random_params(MIXTURE), ROUTED.astype(np.int16)
  # Some are not recorded, in one layer or in both.
  routed[0, 2], routed[1, 3, 1], routed[1, 4, 0, 1] = -1, -1, -1
  found = jax.jit(routed_loss)(params, TOKENS, routed)
  free = jax.jit(lambda *given: loss(*given)[1])(params, TOKENS)
  for row in range(2):
    told = routed[row].swapaxes(0, 1).reshape(-1, MIXTURE.experts_per_token)
    told = (None if (ids < 0).any() else ids for ids in told)
    want = reference(MIXTURE, params, TOKENS[row], routed=told)
    np.testing.assert_allclose(found[row], want, atol=2e-5)
    assert np.abs(free[row] - want).max() > 0.05


def test_what_the_router_chooses_may_as_well_be_told():
  params = random_params(MIXTURE)
  free, chosen = jax.jit(lambda *given: loss(*given)[1])(params, TOKENS), []
  for row in TOKENS:
    sent = []
    reference(MIXTURE, params, row, sent)
    ids = np.array([ids for ids, _ in sent])
    chosen.append(ids.reshape(MIXTURE.num_layers, len(row), -1).swapaxes(0, 1))
  routed = np.array(chosen, np.int16)
  found = jax.jit(routed_loss)(params, TOKENS, routed)
  np.testing.assert_array_equal(found, free)
  # Whatever the order: shares go with the experts.
  turned = jax.jit(routed_loss)(params, TOKENS, routed[..., ::-1])
  np.testing.assert_allclose(turned, free, atol=1e-5)


def test_gradients_of_routed_tokens_reach_the_router_and_those_experts_alone():
  rng = np.random.default_rng(3)
  shapes = {"router": (4, 5), "gate": (5, 4, 3), "up": (5, 4, 3), "down": (5, 3, 4)}
  arrays = {name: np.float32(rng.normal(size=x)) for name, x in shapes.items()}
  x = np.float32(rng.normal(size=(7, 4)))
  routed = rng.permuted(np.tile([0, 1, 3, 4], (7, 1)), axis=1)[:, :2]
  slope = np.float32(rng.normal(size=x.shape))

  def found(arrays, x):
    mats = (ExpertMatrix(arrays[name]) for name in ("gate", "up", "down"))
    out, chosen = Experts(arrays["router"], *mats)(x, 2, True, routed)
    np.testing.assert_array_equal(chosen, routed)
    return (out * slope).sum()

  def want(arrays, x):
    share = jax.nn.softmax(x @ arrays["router"])
    held = (routed[:, :, None] == np.arange(5)).any(axis=1)
    share = jnp.where(held, share, 0)
    share = share / share.sum(axis=1, keepdims=True)
    inner = jax.nn.silu(jnp.einsum("td,edf->tef", x, arrays["gate"]))
    inner = inner * jnp.einsum("td,edf->tef", x, arrays["up"])
    out = jnp.einsum("te,tef,efd->td", share, inner, arrays["down"])
    return (out * slope).sum()

  with jax.disable_jit():
    value, gradient = jax.value_and_grad(found, argnums=(0, 1))(arrays, x)
  expected, wanted = jax.value_and_grad(want, argnums=(0, 1))(arrays, x)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, wanted
  )
  assert np.abs(gradient[0]["router"]).max() > 0.01
  assert not gradient[0]["down"][2].any()


def test_a_model_without_experts_routes_nothing():
  config = dataclasses.replace(MIXTURE, num_experts=0)
  model = models.Decoder(config, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="no mixture of experts"):
    model(TOKENS, routed_BSLE=ROUTED)
