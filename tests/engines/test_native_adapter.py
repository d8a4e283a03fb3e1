"""The native engine with adapters beside frozen params, in every precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import random_params
from test_lora import LORA, random_adapter
from test_native_precision import (
  EVERYTHING,
  TOKENS,
  decoder_logits,
  engine_logits,
)

from tis_jax import models
from tis_jax.engines import NativeEngine
from tis_jax.engines.native.adapter import with_adapter
from tis_jax.engines.native.layout import layout
from tis_jax.engines.native.precision import Precision
from tis_jax.logprobs import Sampling
from tis_jax.store import digest


@pytest.mark.slow
@pytest.mark.parametrize(
  ("precision", "targets"),
  [
    ("float32", ("key", "up")),
    ("bfloat16", LORA.targets),
    ("int8", LORA.targets),
  ],
)
def test_a_layout_with_adapters_computes_what_the_decoder_does(precision, targets):
  if precision in models.QUANTIZED:
    pytest.importorskip("qwix")
  lora = dataclasses.replace(LORA, targets=targets)
  chosen = Precision(precision)
  graph = models.decoder_graph(EVERYTHING, dtype=chosen.activations)
  params, adapter = random_params(EVERYTHING), random_adapter(EVERYTHING, lora)
  low = chosen.of(params)
  want = np.asarray(decoder_logits(graph, models.adapt(low, adapter, lora)))
  exact = np.asarray(
    decoder_logits(
      models.decoder_graph(EVERYTHING), models.adapt(params, adapter, lora)
    )
  )
  made = with_adapter(graph, layout(graph, low), lora, adapter)
  found = engine_logits(graph, made, (9, 1))
  close = 3e-5 if precision == "float32" else np.abs(want - exact).mean()
  assert np.abs(found - want).mean() < close
  bare = np.asarray(decoder_logits(graph, low))
  assert np.abs(found - bare).mean() > 10 * close


def engine_beside(params, say=print):
  return NativeEngine(
    models.decoder_graph(EVERYTHING),
    Sampling(),
    max_new_tokens=5,
    eos_ids=(),
    pad_id=0,
    precision="float32",
    base=models.Base(params, LORA),
    say=say,
  )


def generate(engine):
  key = jax.random.key(3)
  return engine.generate(TOKENS, np.ones(TOKENS.shape, bool), samples=2, key=key)


@pytest.mark.slow
def test_an_engine_takes_versions_of_the_adapter_alone():
  params = random_params(EVERYTHING)
  engine = engine_beside(params)
  merging = NativeEngine(
    models.decoder_graph(EVERYTHING),
    Sampling(),
    max_new_tokens=5,
    eos_ids=(),
    pad_id=0,
    precision="float32",
  )
  for version in (1, 2):
    adapter = random_adapter(EVERYTHING, seed=version)
    arrays = jax.device_get(models.flatten(adapter))
    engine.update(arrays, version)
    merging.update(models.merge(params, adapter, LORA), version)
    assert engine.params_digest == digest(arrays)
    found, want = generate(engine), generate(merging)
    np.testing.assert_array_equal(found.tokens, want.tokens)
    np.testing.assert_allclose(found.sampler_logp, want.sampler_logp, atol=1e-4)
    assert (found.versions == version).all()
  before = generate(engine).tokens
  with pytest.raises(ValueError, match="unknown: \\['embedding'"):
    engine.update(jax.device_get(models.flatten(params)), 3)
  np.testing.assert_array_equal(generate(engine).tokens, before)


def test_a_small_adapter_survives_bf16_beside_and_not_merged():
  """Of params that bf16 holds exactly, half a unit in the last place is 1/512."""
  params = models.cast(models.cast(random_params(EVERYTHING), "bfloat16"), "float32")
  # So small that nothing of it reaches the last place of any but the least params.
  adapter = jax.tree.map(lambda x: x * 0.02, random_adapter(EVERYTHING))
  graph = models.decoder_graph(EVERYTHING)
  exact = decoder_logits(graph, models.adapt(params, adapter, LORA))
  moved = np.asarray(exact - decoder_logits(graph, params))

  def missed(low):
    """The share of what the adapter does that low, in fp32 arithmetic, does not."""
    found = np.asarray(decoder_logits(graph, low) - decoder_logits(graph, params))
    return np.linalg.norm(found - moved) / np.linalg.norm(moved)

  beside = models.adapt(params, models.cast(adapter, jnp.bfloat16), LORA)
  merged = models.cast(models.merge(params, adapter, LORA), jnp.bfloat16)
  assert missed(beside) < 0.05
  assert missed(merged) > 0.5
