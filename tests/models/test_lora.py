"""Adapters beside a decoder's matrices, against the matrices that they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import PLAIN, TOKENS, make, random_params, reference

from tis_jax import models

LORA = models.LoRA(rank=3, alpha=6.0)


def random_adapter(config, lora=LORA, seed=1):
  draw = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.2 * draw.standard_normal(x.shape), jnp.float32),
    models.abstract_adapter(config, lora),
  )


def spelt_out(params, graph):
  """Quantised params as the floats that they stand for."""
  flat = {
    name: x.qvalue * x.scale if hasattr(x, "qvalue") else x
    for name, x in models.flatten(params).items()
  }
  return models.unflatten(graph, flat)


def added_up(params, adapter, lora):
  """W + alpha / rank A B of every layer, by loops in float64."""
  flat = {name: np.float64(x) for name, x in models.flatten(params).items()}
  halves = {name: np.float64(x) for name, x in models.flatten(adapter).items()}
  for name in {name.rpartition("/")[0] for name in halves}:
    for layer, weight in enumerate(flat[name]):
      a = halves[f"{name}/lora_a"][layer].reshape(-1, lora.rank)
      b = halves[f"{name}/lora_b"][layer].reshape(lora.rank, -1)
      weight += lora.alpha / lora.rank * (a @ b).reshape(weight.shape)
  return flat


@pytest.mark.parametrize("targets", [LORA.targets, ("out", "up")], ids=["all", "two"])
def test_a_decoder_with_adapters_is_that_of_the_sums(targets):
  lora = dataclasses.replace(LORA, targets=targets)
  params, adapter = random_params(PLAIN), random_adapter(PLAIN, lora)
  summed = added_up(params, adapter, lora)
  want = reference(
    PLAIN, models.unflatten(models.decoder_graph(PLAIN), summed), TOKENS[0]
  )
  beside, _ = make(PLAIN)(models.adapt(params, adapter, lora), TOKENS[:1], None)
  np.testing.assert_allclose(beside[0], want, atol=3e-5, rtol=0)
  merged = models.merge(params, adapter, lora)
  for name, array in models.flatten(merged).items():
    np.testing.assert_allclose(array, summed[name], atol=1e-6, err_msg=name)
  plain, _ = make(PLAIN)(params, TOKENS[:1], None)
  assert np.abs(plain - beside).max() > 0.1


def test_a_fresh_adapter_changes_nothing():
  params = random_params(PLAIN)
  fresh = models.init_adapter(PLAIN, LORA, jax.random.key(0))
  spread = models.flatten(fresh)["layers/attention/query/lora_a"]
  # Uniform within 1 / sqrt(32 inputs).
  assert 0.15 < float(jnp.abs(spread).max()) < 32**-0.5
  adapted = models.adapt(params, fresh, LORA)
  logp = make(PLAIN)
  np.testing.assert_array_equal(
    logp(adapted, TOKENS, None)[0], logp(params, TOKENS, None)[0]
  )


def test_quantised_params_may_stand_under_adapters():
  pytest.importorskip("qwix")
  params, adapter = random_params(PLAIN), random_adapter(PLAIN)
  low = dataclasses.replace(LORA, base="int8").frozen(params)
  spelt = spelt_out(low, models.decoder_graph(PLAIN))
  logp = make(PLAIN)

  @jax.jit
  def value_and_gradient(adapter, base):
    loss = lambda x: logp(models.adapt(base, x, LORA), TOKENS[:1], None)[0][..., 1]
    return jax.value_and_grad(lambda x: loss(x).mean())(adapter)

  found, want = (value_and_gradient(adapter, base) for base in (low, spelt))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, want)
  assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(found[1]))
  with pytest.raises(ValueError, match="quantised"):
    models.merge(low, adapter, LORA)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"rank": -1}, "rank"),
    ({"targets": ("queries",)}, "query"),
    ({"targets": ()}, "targets are empty"),
    ({"base": "int3"}, "int4"),
  ],
)
def test_settings_that_make_no_adapter_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    models.LoRA(**{"rank": 2} | settings)


def test_an_adapter_of_other_shapes_is_refused_by_name():
  flat = models.flatten(random_adapter(PLAIN))
  again = models.unflatten_adapter(PLAIN, LORA, flat)
  assert models.flatten(again).keys() == flat.keys()
  wider = dataclasses.replace(LORA, rank=4)
  with pytest.raises(ValueError, match=r"key/lora_a has shape \(2, 32, 3\)"):
    models.unflatten_adapter(
      PLAIN, dataclasses.replace(wider, targets=("key",)), flat_of(flat, "key")
    )
  with pytest.raises(ValueError, match=r"missing: .*attention/query/lora_a"):
    models.unflatten_adapter(PLAIN, LORA, flat_of(flat, "key"))


def flat_of(flat, target):
  return {name: x for name, x in flat.items() if f"/{target}/" in name}
