"""verl's own helper beside its reproduction, on batches that no golden file holds."""

import numpy as np
import pytest

from tis_jax import compat

pytestmark = pytest.mark.peers

CONFIGS = [
  {"rollout_is": "token", "rollout_is_threshold": 2.0},
  {"rollout_is": "sequence", "rollout_is_threshold": 5.0},
  {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
  {"rollout_is": "token", "rollout_is_batch_normalize": True},
  {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.25"},
  {
    "rollout_is": "token",
    "rollout_rs": "seq_mean_k1,seq_max_k3",
    "rollout_rs_threshold": "0.99_1.01,0.05",
  },
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_masks_and_metrics_are_verls(config, seed):
  torch = pytest.importorskip("torch")
  helper = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper")
  rng = np.random.default_rng(seed)
  sampler = -rng.gamma(1.0, 0.7, (16, 40)).astype(np.float32)
  old = sampler + rng.normal(0.0, 0.1, sampler.shape).astype(np.float32)
  mask = (np.arange(40) < rng.integers(1, 41, (16, 1))).astype(np.float32)
  tensors = [torch.from_numpy(x) for x in (old, sampler, mask)]
  data, kept, metrics = helper.compute_rollout_correction_and_rejection_mask(
    *tensors, **config
  )
  weight, got_kept, got = compat.verl.correction(config)(old, sampler, mask)
  if data is None:
    assert weight is None
  else:
    want = data.batch["rollout_is_weights"].numpy()
    np.testing.assert_allclose(weight, want, rtol=2e-5, atol=1e-6)
  np.testing.assert_array_equal(got_kept, kept.numpy())
  assert set(got) == set(metrics)
  for name, value in metrics.items():
    # verl takes a standard deviation as a difference of two large numbers in fp32.
    if not name.endswith("_std"):
      np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
