"""A layout computes what the decoder computes, in every precision."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_decoder import GEMMA, MIXTURE, PLAIN, random_params

from tis_jax import models
from tis_jax.engines.native import cache
from tis_jax.engines.native.cache import empty, rounded
from tis_jax.engines.native.forward import Past, forward, logits
from tis_jax.engines.native.layout import layout
from tis_jax.engines.native.precision import PRECISIONS, Precision
from tis_jax.logprobs.reference import materialized_logits
from tis_jax.models import long_attention

EVERYTHING = dataclasses.replace(
  PLAIN,
  tie_embeddings=False,
  attention_bias=True,
  qk_norm=True,
  rope_scaling=models.RopeScaling(4.0, 1.0, 4.0, 64),
)
TOKENS = np.random.default_rng(7).integers(0, 24, (3, 10)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def decoder_logits(graph, params):
  model = nnx.merge(graph, params)
  return materialized_logits(model(TOKENS)[0], model.head())


def engine_logits(graph, made, chunks=(10,), cache_dtype=None, recent=()):
  """In parts; those of `recent` into a cache of their own, behind the first one."""
  config, dtype = models.params.config_of(graph), dict(graph.attributes)["dtype"].value
  kept = jnp.dtype(cache_dtype or dtype)
  run = jax.jit(lambda *args: forward(*args), static_argnums=(0, 1))
  found, read, past = [], 0, None
  for sizes in (chunks, recent):
    memories, start = empty(config, 3, 16, kept), 0
    for size in sizes:
      part = TOKENS[:, read : read + size]
      hidden, memories, _ = run(
        config, dtype, made, part, np.int32(start), memories, past
      )
      found.append(np.stack([logits(made, hidden[:, i]) for i in range(size)], axis=1))
      read, start = read + size, start + size
    past = Past(memories, np.full(3, read, np.int32))
  return np.concatenate(found, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("config", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layout_computes_what_the_decoder_does(config, precision):
  if precision in models.QUANTIZED:
    pytest.importorskip("qwix")
  chosen = Precision(precision)
  graph = models.decoder_graph(config, dtype=chosen.activations)
  params = random_params(config)
  low = chosen.of(params)
  want = np.asarray(decoder_logits(graph, low))
  made = layout(graph, low)
  # The same params in fp32 arithmetic: what roundings do to one pass. Two passes whose
  # roundings are independent differ by the root of 2 of that.
  exact = np.asarray(decoder_logits(models.decoder_graph(config), low))
  off = np.abs(want - exact).mean()
  for chunks, recent in (((10,), ()), ((4, 3), (1, 1, 1))):
    found = engine_logits(graph, made, chunks, recent=recent)
    assert found.dtype == np.float32
    assert np.abs(found - want).mean() < 2**0.5 * off + 2e-5, chunks
    assert np.abs(found - exact).mean() < 1.3 * off + 2e-5, chunks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_held_in_fp32_matrices_are_what_they_were_rounded_to(monkeypatch, dtype):
  """From fp32 params, where XLA would rather not round at all."""
  graph, params = models.decoder_graph(PLAIN, dtype=dtype), random_params(PLAIN)
  found = {}
  for held in (dtype, "float32"):
    fastest = functools.partial(jnp.dtype, held)
    monkeypatch.setattr(
      sys.modules[layout.__module__], "multiplied_in", lambda *_, of=fastest: of()
    )
    found[held] = layout(graph, params)
  narrow, wide = found[dtype], found["float32"]
  same = [(narrow.head_VD, wide.head_VD)]
  for one, other in zip(narrow.layers, wide.layers, strict=True):
    for name in ("heads", "out", "gate_up", "down"):
      same.append(tuple(getattr(x, name).numbers_OI for x in (one, other)))
  for a, b in same:
    assert (a.dtype, b.dtype) == (jnp.dtype(dtype), jnp.float32)
    np.testing.assert_array_equal(a.astype(jnp.float32), b)
  # Sums in another order, each then rounded to `dtype`.
  want, got = (engine_logits(graph, made) for made in (narrow, wide))
  exact = engine_logits(models.decoder_graph(PLAIN), layout(graph, params))
  assert np.abs(want - got).mean() < 2**0.5 * np.abs(want - exact).mean()


def test_a_head_may_be_fp32_under_bf16_layers():
  graph = models.decoder_graph(EVERYTHING, dtype=jnp.bfloat16)
  params = random_params(EVERYTHING)
  chosen = Precision("bfloat16", head="float32")
  assert chosen.words == "bfloat16, float32 head"
  low = chosen.of(params)
  made = layout(graph, low, params)
  hidden = jax.random.normal(jax.random.key(3), (5, 32)).astype(jnp.bfloat16)
  head = np.asarray(models.flatten(params)["output"], np.float64)
  want = np.float64(hidden.astype(jnp.float32)) @ head
  np.testing.assert_allclose(logits(made, hidden), want, atol=1e-5)
  rounded_head = logits(layout(graph, low), hidden)
  assert np.abs(rounded_head - want).mean() > 1e-3


@pytest.mark.slow
def test_an_int8_cache_is_near_and_says_so():
  graph = models.decoder_graph(EVERYTHING)
  made = layout(graph, random_params(EVERYTHING))
  exact = engine_logits(graph, made, (4, 3, 3))
  found = engine_logits(graph, made, (4, 3), cache_dtype=jnp.int8, recent=(2, 1))
  gap = np.abs(jax.nn.log_softmax(found) - jax.nn.log_softmax(exact)).mean()
  assert 1e-4 < gap < 0.05
  assert Precision("float32", cache="int8").words == "float32, int8 cache"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_what_is_appended_stands_where_it_would_have_been_written(dtype):
  rng = np.random.default_rng(0)
  key, value = rng.standard_normal((2, 4, 5, 2, 8)).astype(np.float32)
  old_key, old_value = rng.standard_normal((2, 4, 16, 2, 8)).astype(np.float32)
  start, count = np.array([0, 5, 13, 9], np.int32), 4

  def held(key, value, places):
    blank = empty(PLAIN, len(key), places, jnp.dtype(dtype))[0]
    return cache.write(blank, key, value, 0)

  found = jax.jit(cache.append)(
    held(old_key, old_value, 16), held(key, value, 8), start, np.int32(count)
  )
  for row, first in enumerate(start):
    # The third row has room for three.
    some = min(count, 16 - first)
    old_key[row, first : first + some] = key[row, :some]
    old_value[row, first : first + some] = value[row, :some]
  want = held(old_key, old_value, 16)
  jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.slow
@pytest.mark.parametrize("cache_dtype", [None, jnp.int8])
def test_long_slots_are_attended_in_blocks(monkeypatch, cache_dtype):
  graph = models.decoder_graph(EVERYTHING)
  made = layout(graph, random_params(EVERYTHING))
  want = engine_logits(graph, made, (4, 3, 3), cache_dtype)
  monkeypatch.setattr(sys.modules[forward.__module__], "is_long", lambda *_: True)
  monkeypatch.setattr(long_attention, "_QUERIES", 2)
  monkeypatch.setattr(long_attention, "_SLOTS", 5)
  found = engine_logits(graph, made, (4, 3, 3), cache_dtype)
  assert (found != want).any()  # Another order of sums.
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_rounding_is_to_127_parts_of_the_largest():
  x = np.random.default_rng(0).standard_normal((2, 3, 4, 8)).astype(np.float32)
  x[0, 0, 0] = 0
  numbers, scale = rounded(x)
  assert numbers.dtype == np.int8 and scale.shape == (2, 3, 4)
  assert np.abs(numbers * scale[..., None] - x).max() <= np.abs(x).max() / 254 + 1e-6
  assert not numbers[0, 0, 0].any()


def test_a_layout_with_windows_computes_what_the_decoder_does(monkeypatch):
  graph, params = models.decoder_graph(GEMMA), random_params(GEMMA)
  want = np.asarray(decoder_logits(graph, params))
  made = layout(graph, params)
  found = engine_logits(graph, made, (5, 4, 1))
  np.testing.assert_allclose(found, want, atol=5e-5)
  monkeypatch.setattr(sys.modules[forward.__module__], "is_long", lambda *_: True)
  monkeypatch.setattr(long_attention, "_QUERIES", 2)
  monkeypatch.setattr(long_attention, "_SLOTS", 3)
  found = engine_logits(graph, made, (9, 1))
  np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_layout_of_a_mixture_computes_what_the_decoder_does(precision):
  if precision == "int8":
    pytest.importorskip("qwix")
  chosen = Precision(precision)
  graph = models.decoder_graph(MIXTURE, dtype=chosen.activations)
  params = random_params(MIXTURE)
  low = chosen.of(params)
  want = np.asarray(decoder_logits(graph, low))
  found = engine_logits(graph, layout(graph, low), (9, 1))
  # A token on the edge between two experts may be sent to the other one.
  gap = np.median(np.abs(found - want))
  assert gap < (2e-5 if precision == "float32" else 0.02)
