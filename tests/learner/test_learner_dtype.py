"""A learner whose activations are narrower takes nearly the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm

from tis_jax import learner
from tis_jax.models import decoder_graph, flatten
from tis_jax.models.params import config_of


def gradient_step(tiny, batch, dtype, **settings):
  """(metrics, params moved by plain descent) of one update."""
  graph = decoder_graph(config_of(tiny.graph), dtype=dtype)
  update = learner.make_update(
    graph, make_algorithm(**settings), tiny.optimizer, tiny.meshes["one"]
  )
  state = learner.init_state(
    tiny.params, tiny.optimizer, jax.random.key(0), tiny.meshes["one"]
  )
  state, metrics = jax.device_get(update(state, batch, np.int32(VERSION)))
  return metrics, flatten(state.params)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "close"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_a_step_in_few_bits_is_near_the_fp32_one(tiny, batch, dtype, close):
  want, _ = gradient_step(tiny, batch, jnp.float32)
  found, params = gradient_step(tiny, batch, jnp.dtype(dtype))
  assert not found["update/skipped"]
  assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
  norm = want["optimizer/grad_norm"]
  assert 0 < abs(found["optimizer/grad_norm"] - norm) < close * norm


@pytest.mark.slow
def test_in_fp16_small_gradients_are_not_lost(tiny, batch):
  # Each token counts for a millionth, as in a very large batch.
  small = {
    "aggregation__mode": "sequence_sum_constant",
    "aggregation__length": 3e6,
  }
  want, _ = gradient_step(tiny, batch, jnp.float32, **small)
  found, _ = gradient_step(tiny, batch, jnp.float16, **small)
  norm = want["optimizer/grad_norm"]
  assert abs(found["optimizer/grad_norm"] - norm) < 0.02 * norm
