"""slime's `mis.py` where it differs from what one would expect of it."""

import numpy as np
import pytest

from tis_jax.compat import slime


def _batch(log_ratio, mask):
  log_ratio = np.asarray(log_ratio, np.float32)
  return log_ratio - 40.0, np.full_like(log_ratio, -40.0), np.asarray(mask, np.int32)


def test_rejection_without_weights_rejects_nothing():
  config = {"use_rs": True, "rs_upper_bound": 1.1, "rs_veto_threshold": 0.9}
  batch = _batch([[-3.0, 0.0], [2.0, 0.0]], [[1, 1], [1, 1]])
  weight, mask, metrics = slime.correction(config)(*batch)
  assert weight is None
  np.testing.assert_array_equal(mask, batch[2])
  assert not any("rs_" in name for name in metrics)
  assert not slime.native(config).stages
  accepted = slime.correction({"use_tis": True} | config)(*batch)[1]
  np.testing.assert_array_equal(accepted, [[0, 0], [0, 1]])


def test_sequence_normalisation_counts_rows_without_tokens_as_zero():
  """Products 2 and 1/2 of two rows, a third without tokens: the mean is 2.5 / 3."""
  config = {"use_tis": True, "tis_level": "sequence", "tis_upper_bound": 4.0}
  log_ratio = [[np.log(2), 0.0], [np.log(0.5), 0.0], [5.0, 5.0]]
  batch = _batch(log_ratio, [[1, 1], [1, 0], [0, 0]])
  weight, _, metrics = slime.correction(config)(*batch)
  np.testing.assert_allclose(metrics["mis_batch_norm_factor"], 2.5 / 3, rtol=1e-5)
  np.testing.assert_allclose(weight, [[2.4, 2.4], [0.6, 0], [0, 0]], rtol=1e-5)
  native = slime.native(config)(*batch)[0]
  np.testing.assert_allclose(native[:2, 0], [1.6, 0.4], rtol=1e-5)


@pytest.mark.parametrize(
  ("level", "wanted"), [("geometric", -5.0), ("sequence", -10.0)]
)
def test_levels_take_raw_differences_before_any_clamp(level, wanted):
  """Tokens of -30 and +20: the mean is -5 (0.0067), not the -7.5 of -20 and ... ."""
  config = {"use_tis": True, "tis_level": level, "tis_batch_normalize": False}
  weight, _, _ = slime.correction(config)(*_batch([[-30.0, 20.0]], [[1, 1]]))
  np.testing.assert_allclose(weight, np.full((1, 2), np.exp(wanted)), rtol=1e-5)


def test_rejection_levels_take_raw_differences_too():
  config = {"use_tis": True, "use_rs": True, "rs_level": "geometric"}
  config |= {"rs_lower_bound": 0.5, "rs_upper_bound": 2.0, "rs_veto_threshold": None}
  batch = _batch([[-30.0, 30.0], [-30.0, 20.0]], [[1, 1], [1, 1]])
  np.testing.assert_array_equal(slime.correction(config)(*batch)[1], [[1, 1], [0, 0]])
