"""Parameters by name, on a mesh, in other dtypes, and lowered for other machines."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from tis_jax import models

CONFIG = models.DecoderConfig(
  vocab_size=24,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  tie_embeddings=False,
)
GRAPH = models.decoder_graph(CONFIG)
TOKENS = np.random.default_rng(7).integers(0, CONFIG.vocab_size, (8, 6))


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda key: models.init_params(CONFIG, key))(jax.random.key(0))


def mean_logp(params, tokens):
  model = nnx.merge(GRAPH, params)
  hidden, _ = model(tokens)
  logp = jax.nn.log_softmax(hidden @ model.head())
  return jnp.mean(logp[:, :, 3]), logp


def test_the_graph_is_that_of_a_built_model_and_hashes_alike(params):
  built, state = nnx.split(models.Decoder(CONFIG, rngs=nnx.Rngs(0)))
  assert built == GRAPH and hash(built) == hash(GRAPH)
  assert jax.tree.structure(state) == jax.tree.structure(params)
  assert models.decoder_graph(CONFIG, remat=True) != GRAPH


def test_the_count_of_parameters_is_theirs(params):
  assert sum(x.size for x in jax.tree.leaves(params)) == CONFIG.num_parameters
  rich = dataclasses.replace(CONFIG, attention_bias=True, qk_norm=True)
  mixture = dataclasses.replace(rich, num_experts=3, experts_per_token=2)
  normed = dataclasses.replace(rich, post_norms=True)
  for config in (rich, mixture, normed):
    leaves = jax.tree.leaves(models.abstract_params(config))
    assert sum(x.size for x in leaves) == config.num_parameters


def test_flatten_and_back_neither_copies_nor_retraces(params):
  traces = jax.jit(chex.assert_max_traces(lambda p: mean_logp(p, TOKENS)[0], n=1))
  again = models.unflatten(GRAPH, models.flatten(params))
  assert again["embedding"].get_value() is params["embedding"].get_value()
  assert traces(params) == traces(again)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda flat: flat.pop("output"), "missing: ['output']"),
    (lambda flat: flat.update(extra=flat["output"]), "unknown: ['extra']"),
    (lambda flat: flat.update(output=flat["output"].T), "output has shape (24, 32)"),
  ],
  ids=["missing", "unknown", "transposed"],
)
def test_unflatten_names_what_is_wrong(params, change, message):
  flat = models.flatten(params)
  change(flat)
  with pytest.raises(ValueError) as raised:
    models.unflatten(GRAPH, flat)
  assert message in str(raised.value)


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_every_layout_computes_what_one_device_does(params, shape):
  step = jax.jit(jax.value_and_grad(mean_logp, has_aux=True))
  (_, logp), gradient = step(params, TOKENS)
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)
  shardings = models.params_sharding(params, mesh)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, shardings)
    step = jax.jit(jax.value_and_grad(mean_logp, has_aux=True))
    (_, sharded_logp), sharded_gradient = step(placed, TOKENS)
  np.testing.assert_allclose(sharded_logp, logp, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    sharded_gradient,
    gradient,
  )
  split = models.flatten(placed)["layers/mlp/down"]
  parts = split.size // split.addressable_shards[0].data.size
  assert parts == shape[1] * shape[2]


def test_heads_that_do_not_divide_stay_whole():
  nine = dataclasses.replace(CONFIG, num_heads=9, num_kv_heads=3)
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  shardings = models.params_sharding(models.abstract_params(nine), mesh)
  flat = models.flatten(shardings)
  assert flat["layers/attention/query"].spec[1:3] == ("fsdp", None)
  assert flat["layers/mlp/up"].spec[1:3] == ("fsdp", "tensor")


def test_an_explicit_mesh_is_refused(params):
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
  with pytest.raises(ValueError, match=r"AxisType\.Auto"):
    models.params_sharding(params, mesh)


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.05), ("int4", 1.0)])
def test_quantized_params_run_anywhere_and_differ_a_little(params, dtype, most):
  quantized = jax.jit(models.quantize, static_argnums=1)(params, dtype)
  leaves = models.flatten(quantized)
  assert leaves["layers/mlp/up"].qvalue.dtype == jnp.dtype(dtype)
  assert leaves["layers/attention/out"].scale.shape == (2, 1, 1, 1, 32)
  assert leaves["embedding"].dtype == jnp.float32
  # A whole step of a weight is 1/127.5, or 1/7.5, of the largest in its channel.
  up, kept = models.flatten(params)["layers/mlp/up"], leaves["layers/mlp/up"]
  steps = np.abs(up).max(axis=1, keepdims=True) / kept.scale
  np.testing.assert_allclose(steps, {"int8": 127.5, "int4": 7.5}[dtype], rtol=1e-5)
  error = np.abs(kept.qvalue.astype(jnp.float32) * kept.scale - up)
  assert (error <= kept.scale * 0.5 + 1e-6).all()

  _, exact = jax.jit(mean_logp)(params, TOKENS)
  _, rounded = jax.jit(mean_logp)(quantized, TOKENS)
  gap = np.abs(rounded - exact)
  assert 1e-4 < gap.mean() < most and gap.max() < 6 * most

  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(quantized, models.params_sharding(quantized, mesh))
    _, sharded = jax.jit(mean_logp)(placed, TOKENS)
  np.testing.assert_allclose(sharded, rounded, atol=1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_prefill_and_decode_lower_for_accelerators(params, platform, weights):
  graph = models.decoder_graph(CONFIG, dtype=jnp.bfloat16)
  params = models.cast(params, jnp.bfloat16)
  if weights != "bf16":
    params = jax.eval_shape(lambda x: models.quantize(x, weights), params)
  cache = models.init_cache(CONFIG, batch=8, capacity=16, dtype=jnp.bfloat16)

  leaves, tree = jax.tree.flatten((params, cache))

  def flat(leaves, tokens):
    params, cache = jax.tree.unflatten(tree, leaves)
    hidden, cache = nnx.merge(graph, params)(tokens, cache=cache)
    return hidden, tuple(cache)

  export = jax.export.export(jax.jit(flat), platforms=[platform])
  for tokens in (TOKENS, TOKENS[:, :1]):
    module = export(leaves, tokens).mlir_module()
    assert "stablehlo.while" in module, "layers are scanned, not unrolled"
