"""The TPU kernels of long rows: their arithmetic in the interpreter, and that a TPU,
also several, would take them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl

from tis_jax import models
from tis_jax.models import attend_long, tpu_blocks
from tis_jax.models.layers import Near
from tis_jax.models.long_attention import attend_in_blocks

B, S, N, G, K = 4, 37, 2, 3, 16
AUTO = (jax.sharding.AxisType.Auto,) * 3
PLACES = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
# Left padding; two segments; a prompt, two responses to it and padding; one segment.
SEGMENTS = np.stack(
  [
    np.repeat([0, 1], [5, 32]),
    np.repeat([1, 2], [20, 17]),
    np.repeat([1, 2, 3, 0], [6, 9, 12, 10]),
    np.ones(S, int),
  ]
).astype(np.int32)
PREFIXES = np.where(np.arange(B)[:, None] == 2, SEGMENTS > 1, 0).astype(np.int32)
NEAR = Near(jnp.int32(7), PLACES, PLACES)
SEES = {"segments": (None, None), "prefixes": (PREFIXES, None), "window": (None, NEAR)}


@pytest.fixture
def on_tpu(monkeypatch):
  """The program of a TPU, in the interpreter, in small blocks."""
  monkeypatch.setattr(tpu_blocks, "_LANES", 8)
  monkeypatch.setattr(tpu_blocks, "_MOST", 8)
  interpreted = functools.partial(pl.pallas_call, interpret=True)
  monkeypatch.setattr(pl, "pallas_call", interpreted)
  chosen = lambda *arrays, tpu, default: tpu(*arrays)
  monkeypatch.setattr(jax.lax, "platform_dependent", chosen)


def make_arrays(dtype, batch=B):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  arrays = 2 * draw(batch, S, N, G, K), 2 * draw(batch, S, N, K), draw(batch, S, N, K)
  return arrays, draw(batch, S, N, G, K)


def value_and_gradients(attend, arrays, weight, sees="segments"):
  run = lambda *arrays: attend(*arrays, PLACES, SEGMENTS, SEGMENTS, *SEES[sees])
  out, gradient = jax.jit(lambda *arrays: jax.vjp(run, *arrays))(*arrays)
  return jax.tree.map(np.float32, (out, *gradient(weight)))


@pytest.mark.parametrize("sees", SEES)
def test_the_kernels_are_the_blocks(on_tpu, monkeypatch, sees):
  # Which they are asked to be in 16 bits alone; in 32 little is lost to rounding.
  monkeypatch.setattr(attend_long, "has_kernel", lambda *_: True)
  arrays, weight = make_arrays(np.float32)
  found = value_and_gradients(attend_long.attend_long, arrays, weight, sees)
  want = value_and_gradients(attend_in_blocks, arrays, weight, sees)
  for a, b in zip(found, want, strict=True):
    assert np.abs(b).max() > 1
    np.testing.assert_allclose(a, b, atol=3e-5)
    assert (a[SEGMENTS == 0] == 0).all()


def test_a_block_that_nobody_sees_is_not_touched(on_tpu, monkeypatch):
  monkeypatch.setattr(attend_long, "has_kernel", lambda *_: True)
  (query, keys, values), weight = make_arrays(np.float32)
  # Padding behind the last response, from 27 on: blocks of 8 end at 32.
  arrays = (query, keys.at[2, 32:].set(np.nan), values.at[2, 32:].set(np.nan))
  for x in value_and_gradients(attend_long.attend_long, arrays, weight, "prefixes"):
    assert np.isfinite(x[:, :32]).all()


def test_split_over_a_mesh_in_16_bits(on_tpu):
  arrays, weight = make_arrays(jnp.bfloat16)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=AUTO)
  exact = value_and_gradients(attend_in_blocks, *make_arrays(np.float32))
  blocks = value_and_gradients(attend_in_blocks, arrays, weight)
  with jax.set_mesh(mesh):
    assert attend_long.has_kernel(jnp.bfloat16, K)
    split = value_and_gradients(attend_long.attend_long, arrays, weight)
  for a, b, right in zip(split, blocks, exact, strict=True):
    assert np.isfinite(a).all()
    assert (a[SEGMENTS == 0] == 0).all()
    assert np.abs(a - right).mean() < 1.2 * np.abs(b - right).mean()


def test_elsewhere_16_bits_are_taken_in_blocks():
  arrays, weight = make_arrays(jnp.bfloat16)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=AUTO)
  with jax.set_mesh(mesh):
    found = value_and_gradients(attend_long.attend_long, arrays, weight)
  want = value_and_gradients(attend_in_blocks, arrays, weight)
  jax.tree.map(np.testing.assert_array_equal, found, want)


def test_without_a_mesh_only_where_there_is_one_device():
  assert jax.device_count() > 1
  assert not attend_long.has_kernel(jnp.bfloat16, K)
  explicit = (jax.sharding.AxisType.Explicit,)
  with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=explicit)):
    assert not attend_long.has_kernel(jnp.bfloat16, K)


@pytest.mark.parametrize("dtype, kernels", [(jnp.bfloat16, 3), (jnp.float32, 0)])
def test_a_decoder_of_long_rows_lowers_for_tpus(dtype, kernels):
  config = models.DecoderConfig(
    vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=64,
  )  # fmt: skip
  graph = models.decoder_graph(config, dtype=dtype)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=AUTO)

  def loss(params, tokens):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      hidden, _ = nnx.merge(graph, params)(tokens)
    return jnp.sum(hidden.astype(jnp.float32) ** 2)

  params = models.abstract_params(config)
  placed = models.params_sharding(params, mesh)
  rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
  gradient = jax.jit(jax.grad(loss), in_shardings=(placed, rows))
  tokens = jax.ShapeDtypeStruct((4, 4096), jnp.int32)
  exported = jax.export.export(gradient, platforms=["tpu"])(params, tokens)
  assert exported.nr_devices == 8
  assert exported.mlir_module().count("tpu_custom_call") == kernels
