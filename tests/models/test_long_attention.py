"""Attention in blocks is attention, and needs no array of tokens by tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import models
from tis_jax.models import decoder, long_attention
from tis_jax.models.layers import Near, attend
from tis_jax.models.long_attention import attend_in_blocks, sees

B, S, N, G, K = 2, 37, 2, 3, 8


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  segments = np.ones((B, S), np.int32)
  segments[0, :5] = 0  # Left padding,
  segments[1, 20:] = 2  # and two responses in a row.
  return (2 * draw(B, S, N, G, K), 2 * draw(B, S, N, K), draw(B, S, N, K)), segments


def in_blocks(arrays, segments, width=None):
  places = np.broadcast_to(np.arange(S), (B, S))
  near = Near(width, places, places) if width else None
  return attend_in_blocks(*arrays, places, segments, segments, near=near)


def whole(arrays, segments, width=None):
  same = segments[:, :, None] == segments[:, None, :]
  near = np.tri(S, dtype=bool) ^ np.tri(S, k=-(width or S), dtype=bool)
  mask = same & near & (segments != 0)[:, :, None]
  return attend(*arrays, mask)


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(long_attention, "_QUERIES", 8)
  monkeypatch.setattr(long_attention, "_SLOTS", 6)
  monkeypatch.setattr(long_attention, "_MOST", 16)


@pytest.mark.parametrize("width", [None, 7])
def test_value_and_gradient_are_those_of_the_whole(inputs, small_blocks, width):
  arrays, segments = inputs
  real = (segments != 0)[:, :, None, None, None]
  weight = np.random.default_rng(1).standard_normal(arrays[0].shape)

  def loss(attention):
    def loss(arrays):
      out = attention(arrays, segments, width)
      return jnp.sum(jnp.where(real, weight, 0) * out**2)

    return jax.jit(jax.value_and_grad(loss))

  found, want = loss(in_blocks)(arrays), loss(whole)(arrays)
  np.testing.assert_allclose(found[0], want[0], rtol=1e-5)
  for a, b in zip(found[1], want[1], strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_a_prefix_is_attended_to_by_all_that_go_on_from_it(inputs, small_blocks):
  arrays, _ = inputs
  # A prompt, two responses to it and one to none; the other row holds one segment.
  segments = np.repeat([1, 2, 3, 4], [9, 12, 10, 6])[None] * np.array([[1], [0]])
  prefixes = np.isin(segments, [2, 3]).astype(np.int32)
  segments[1] = 1
  places = np.broadcast_to(np.arange(S), (B, S))
  found = attend_in_blocks(*arrays, places, segments, segments, prefixes)
  seen = np.asarray(sees(segments, prefixes, segments)) & np.tri(S, dtype=bool)
  assert seen[0, 30, :9].all() and seen[0, 30, 21:31].all() and seen[0, 30].sum() == 19
  np.testing.assert_allclose(found, attend(*arrays, seen), atol=2e-5)
  alone = attend_in_blocks(
    *(x[:, 31:] for x in arrays), places[:, :6], *[segments[:, 31:]] * 2
  )
  np.testing.assert_allclose(found[0, 31:], alone[0], atol=2e-5)


def test_bf16_stays_close(inputs, small_blocks):
  arrays, segments = inputs
  exact = np.asarray(whole(arrays, segments))
  low = tuple(jnp.bfloat16(x) for x in arrays)
  found = in_blocks(low, segments)
  assert found.dtype == jnp.bfloat16
  real = segments != 0
  gap = np.abs(np.float32(found) - exact)[real].mean()
  assert gap < 2 * np.abs(np.float32(whole(low, segments)) - exact)[real].mean()


@pytest.mark.slow
def test_the_decoder_takes_long_rows_in_blocks(inputs, monkeypatch, small_blocks):
  config = models.DecoderConfig(
    vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8,
  )  # fmt: skip
  params = jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(0))
  tokens = np.random.default_rng(2).integers(0, 24, (B, S))
  segments = inputs[1]

  def run(mesh=None):
    def loss(params):
      model = nnx.merge(models.decoder_graph(config), params)
      hidden, _ = model(tokens, segment_ids_BS=segments)
      return jnp.sum(jnp.where((segments != 0)[..., None], hidden, 0.0) ** 3)

    if mesh is None:
      return jax.jit(jax.value_and_grad(loss))(params)
    split = jax.device_put(params, models.params_sharding(params, mesh))
    with jax.set_mesh(mesh):
      return jax.jit(jax.value_and_grad(loss))(split)

  found = run()
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=auto)
  split = run(mesh)
  monkeypatch.setattr(decoder, "is_long", lambda tokens, slots: False)
  want = run()
  for other in (found, split):
    np.testing.assert_allclose(other[0], want[0], rtol=1e-4)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3),
      other[1],
      want[1],
    )


@pytest.mark.slow
def test_a_row_of_16k_tokens_needs_no_square():
  """In a learner's pass: the compiler says what it would take."""
  config = models.DecoderConfig(
    vocab_size=24, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8,
  )  # fmt: skip
  graph = models.decoder_graph(config, remat=True)
  tokens = jax.ShapeDtypeStruct((1, 16_384), jnp.int32)

  def loss(params, tokens):
    hidden, _ = nnx.merge(graph, params)(tokens)
    return jnp.sum(hidden.astype(jnp.float32) ** 2)

  compiled = jax.jit(jax.grad(loss)).lower(models.abstract_params(config), tokens)
  memory = compiled.compile().memory_analysis()
  square = 16_384**2
  # One byte each would be the mask alone; fp32 logits of two heads are 8.
  assert memory.temp_size_in_bytes < square / 2
