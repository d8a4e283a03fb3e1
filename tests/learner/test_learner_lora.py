"""Updates of an adapter alone, against those of all params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_oracle import VERSION, make_algorithm

from tis_jax import learner, models
from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.models.params import config_of

LORA = models.LoRA(rank=2, alpha=3.0)
SGD = optax.sgd(1.0)


@pytest.fixture(scope="module")
def adapter(tiny):
  draw = np.random.default_rng(5)
  return jax.tree.map(
    lambda x: jnp.asarray(0.1 * draw.standard_normal(x.shape), jnp.float32),
    models.abstract_adapter(config_of(tiny.graph), LORA),
  )


@pytest.mark.slow
def test_its_gradient_is_that_of_all_params_by_the_chain_rule(tiny, batch, adapter):
  merged = models.merge(tiny.params, adapter, LORA)
  mesh, algorithm = tiny.meshes["one"], make_algorithm(kl__coefficient=0.1)
  whole = learner.make_update(tiny.graph, algorithm, SGD, mesh)
  before = jax.device_get(models.flatten(merged))
  state = learner.init_state(merged, SGD, jax.random.key(1), mesh)
  state, want = whole(state, batch, np.int32(VERSION), tiny.params)
  after = jax.device_get(models.flatten(state.params))

  mesh = tiny.meshes["2x2x2"]
  update = learner.make_update(tiny.graph, algorithm, SGD, mesh, lora=LORA)
  base = jax.device_put(tiny.params, models.params_sharding(tiny.params, mesh))
  # A fresh adapter is the reference policy that the base is.
  fresh = models.init_adapter(config_of(tiny.graph), LORA, jax.random.key(0))
  state = learner.init_state(adapter, SGD, jax.random.key(1), mesh)
  state, metrics = update(state, batch, np.int32(VERSION), fresh, base)
  old, new = models.flatten(adapter), models.flatten(state.params)
  kl = float(want["kl/reference"])
  assert metrics["kl/reference"] == pytest.approx(kl, rel=1e-4) and kl > 1e-4
  assert metrics["loss/total"] == pytest.approx(float(want["loss/total"]), abs=1e-5)
  for name in sorted({name.rpartition("/")[0] for name in old}):
    gradient = np.float64(before[name]) - after[name]
    for layer in range(2):
      a, b = (np.float64(old[f"{name}/lora_{x}"][layer]) for x in "ab")
      a, b = a.reshape(-1, LORA.rank), b.reshape(LORA.rank, -1)
      d = 1.5 * gradient[layer].reshape(len(a), -1)
      for half, expected in (("lora_a", d @ b.T), ("lora_b", a.T @ d)):
        moved = np.float64(old[f"{name}/{half}"][layer]) - new[f"{name}/{half}"][layer]
        np.testing.assert_allclose(
          moved.reshape(expected.shape), expected, atol=2e-6, err_msg=f"{name}/{half}"
        )


def test_the_state_and_its_checkpoint_hold_the_adapter_alone(tiny, adapter, tmp_path):
  mesh = tiny.meshes["one"]
  state = learner.init_state(adapter, tiny.optimizer, jax.random.key(1), mesh)
  size = sum(x.size for x in jax.tree.leaves(adapter))
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * size
  like = learner.abstract_state(
    tiny.graph, tiny.optimizer, tiny.meshes["2x2x2"], lora=LORA
  )
  with Checkpoints(tmp_path, {"run": "a", "base": "1"}) as checkpoints:
    checkpoints.save(state, {})
    restored, _ = checkpoints.restore(like)
  jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
  with (
    Checkpoints(tmp_path, {"run": "a", "base": "2"}) as checkpoints,
    pytest.raises(ValueError, match="base is '1' there and '2' here"),
  ):
    checkpoints.restore(like)


def test_a_critic_beside_adapters_is_refused(tiny):
  algorithm = make_algorithm(advantage__name="gae")
  with pytest.raises(ValueError, match="critic is a decoder of its own"):
    learner.make_update(
      tiny.graph,
      algorithm,
      SGD,
      tiny.meshes["one"],
      critic_optimizer=SGD,
      lora=LORA,
    )
