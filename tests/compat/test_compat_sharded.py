"""A peer's numbers do not depend on how the batch is laid out over devices."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.compat import skyrl, verl

_VERL = {
  "rollout_is": "sequence",
  "rollout_is_batch_normalize": True,
  "rollout_rs": "token_k1",
  "rollout_rs_threshold": "0.5_2.0",
}
_SKYRL = {
  "tis_ratio_type": "sequence",
  "sequence_mask_metric": "geometric",
  "geo_mask_low": 0.9,
  "geo_mask_high": 1.1,
  "outlier_token_is_threshold_high": 5.0,
}


def _skyrl_gradient(old, sampler, mask):
  fn = skyrl.policy_loss({"off_policy_correction": _SKYRL})
  return jax.grad(lambda logp: fn(logp, old, old, mask, sampler)[0])(old + 0.1)


_FUNCTIONS = {"verl": verl.correction(_VERL), "skyrl_gradient": _skyrl_gradient}


def _batch():
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1.0, (16, 12)).astype(np.float32)
  old = sampler + rng.normal(0, 0.3, (16, 12)).astype(np.float32)
  return old, sampler, np.arange(12) < rng.integers(0, 13, (16, 1))


@functools.cache
def _single(name):
  return jax.jit(_FUNCTIONS[name])(*_batch())


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", list(_FUNCTIONS))
def test_sharded_equals_single(name, axis_type):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  with jax.set_mesh(mesh):
    found = jax.jit(_FUNCTIONS[name])(*(jax.device_put(x, rows) for x in _batch()))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    found,
    _single(name),
  )
