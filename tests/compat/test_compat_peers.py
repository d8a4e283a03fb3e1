"""The peers without measured numbers, held to numbers worked by hand.

Token ratios of two rows, the last token of the first not in the mask:

  row 0   4    0.5  1.0  (-)    product 2      mean 2^(1/3)      = 1.259921
  row 1   1.2  0.9  1.0  0.1    product 0.108  mean 0.108^(1/4)  = 0.573265
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.compat import (
  areal,
  ms_swift,
  nemo_rl,
  openrlhf,
  prime_rl,
  roll,
  trl,
  tunix,
)

_RATIO = np.array([[4.0, 0.5, 1.0, np.nan], [1.2, 0.9, 1.0, 0.1]])
_MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
_SAMPLER = np.log([[0.2, 0.8, 0.5, np.nan], [0.5, 0.5, 0.5, 0.5]])
_OLD = _SAMPLER + np.log(_RATIO)
_ALL = _MASK.tolist()
_RAW = [[4.0, 0.5, 1.0, 0], [1.2, 0.9, 1.0, 0.1]]


def _rows(a, b):
  """One number a row, on its tokens."""
  return [[a, a, a, 0], [b, b, b, b]]


_WEIGHTS = [
  # module, config, the weight, the mask
  (trl, {}, _rows(2, 0.108), _ALL),
  (trl, {"vllm_importance_sampling_correction": False}, None, _ALL),
  (
    trl,
    {"vllm_importance_sampling_mode": "token_truncate"},
    [[3, 0.5, 1, 0], [1.2, 0.9, 1, 0.1]],
    _ALL,
  ),
  (
    trl,
    {
      "vllm_importance_sampling_mode": "token_mask",
      "vllm_importance_sampling_clip_min": 0.6,
      "vllm_importance_sampling_cap": 1.1,
    },
    [[0, 0, 1, 0], [0, 0.9, 1, 0]],
    _ALL,
  ),
  (
    trl,
    {
      "vllm_importance_sampling_mode": "sequence_truncate",
      "vllm_importance_sampling_clip_max": 1.5,
      "vllm_importance_sampling_clip_min": 0.5,
    },
    _rows(1.5, 0.5),
    _ALL,
  ),
  (openrlhf, {}, None, _ALL),
  (
    openrlhf,
    {"is_correction_enable": True, "is_correction_threshold": [0.6, 3]},
    [[3, 0.6, 1, 0], [1.2, 0.9, 1, 0.6]],
    _ALL,
  ),
  (
    openrlhf,
    {
      "is_correction_enable": True,
      "is_correction_type": "icepop",
      "is_correction_threshold": "0.5 2.0",
    },
    [[0, 0.5, 1, 0], [1.2, 0.9, 1, 0]],
    _ALL,
  ),
  (
    openrlhf,
    {"is_correction_enable": True, "is_correction_type": "seq-mask-tis"}
    | {"is_correction_threshold": [0.8, 1.5]},
    [_RAW[0], [0, 0, 0, 0]],
    _ALL,
  ),
  (nemo_rl, {}, None, _ALL),
  (nemo_rl, {"use_importance_sampling_correction": True}, _RAW, _ALL),
  (
    nemo_rl,
    {"use_importance_sampling_correction": True}
    | {"sequence_level_importance_ratios": True},
    _rows(2, 0.108),
    _ALL,
  ),
  (
    nemo_rl,
    {
      "use_importance_sampling_correction": True,
      "truncated_importance_sampling_type": "tis",
      "truncated_importance_sampling_ratio": 2,
    },
    [[2, 0.5, 1, 0], [1.2, 0.9, 1, 0.1]],
    _ALL,
  ),
  (
    nemo_rl,
    {
      "use_importance_sampling_correction": True,
      "truncated_importance_sampling_type": "icepop",
      "truncated_importance_sampling_ratio": 2,
      "truncated_importance_sampling_ratio_min": 0.5,
      "seq_logprob_error_threshold": 3,  # 7/3 and 3.33 (the factors 1.2 1.11 1 10)
    },
    [[0, 0.5, 1, 0], [0, 0, 0, 0]],
    [_ALL[0], [0, 0, 0, 0]],
  ),
  (ms_swift, {}, None, _ALL),
  (
    ms_swift,
    {"rollout_importance_sampling_mode": "token_mask"},
    [[0, 0.5, 1, 0], _RAW[1]],
    _ALL,
  ),
  (
    ms_swift,
    {"rollout_importance_sampling_mode": "sequence_truncate"}
    | {"rollout_importance_sampling_threshold": 1.1},
    _rows(1.1, 0.573265),
    _ALL,
  ),
  (
    ms_swift,
    {"rollout_importance_sampling_mode": "sequence_mask"}
    | {"rollout_importance_sampling_threshold": 1.1},
    [[0, 0, 0, 0], _RAW[1]],
    _ALL,
  ),
  (tunix, {}, None, _ALL),
  (tunix, {"sampler_is": "token"}, [[2, 0.5, 1, 0], _RAW[1]], _ALL),
  (
    tunix,
    {"sampler_is": "token", "sampler_is_threshold": None, "sampler_rs": "geometric"}
    | {"sampler_rs_min": 0.8, "sampler_rs_max": 1.5},
    [_RAW[0], [0, 0, 0, 0]],
    _ALL,
  ),
  (
    tunix,
    {"sampler_rs": "token", "sampler_rs_min": 0.8, "sampler_rs_max": 1.5}
    | {"seq_logprob_error_threshold": 2},
    [[0, 0, 0, 0], [0, 0, 0, 0]],
    [[0, 0, 0, 0], [0, 0, 0, 0]],
  ),
  (areal, {"use_decoupled_loss": True}, None, _ALL),
  (
    areal,
    {"rejection_sampling": {"upper": 2.0, "lower": 0.6}},
    [[0, 0, 1, 0], [1.2, 0.9, 1, 0]],
    [[0, 0, 1, 0], [1, 1, 1, 0]],
  ),
  (
    areal,
    {"rejection_sampling": {"action": "clamp", "upper": 2.0}},
    [[2, 0.5, 1, 0], _RAW[1]],
    _ALL,
  ),
  (  # the product decides (2 > 1.5), the geometric mean weighs
    areal,
    {"rejection_sampling": {"level": "sequence", "agg": "sum", "upper": 1.5}},
    _rows(0, 0.573265),
    [[0, 0, 0, 0], _ALL[1]],
  ),
  (  # the largest ratio decides: 4 and 1.2
    areal,
    {"rejection_sampling": {"level": "sequence", "agg": "max", "upper": 1.1}},
    _rows(0, 0),
    [[0, 0, 0, 0], [0, 0, 0, 0]],
  ),
  (  # 4 is over 1.25, so its row's mean of 1.26 comes down to that; 1.2 is not
    areal,
    {
      "rejection_sampling": {
        "level": "sequence",
        "action": "clamp",
        "agg": "max",
        "upper": 1.25,
      }
    },
    _rows(1.25, 0.573265),
    _ALL,
  ),
  (  # exp(-d) - 1 + d: of 4 it is 0.6363, of 0.5 0.3069, of 0.1 6.6974
    areal,
    {"rejection_sampling": {"metric": "kl_k3", "upper": 0.5}},
    [[0, 0.5, 1, 0], [1.2, 0.9, 1, 0]],
    [[0, 1, 1, 0], [1, 1, 1, 0]],
  ),
  (  # d^2 / 2 summed: 0.9609 + 0.2402, and 0.0166 + 0.0056 + 2.6509
    areal,
    {"rejection_sampling": {"level": "sequence", "metric": "kl_k2", "agg": "sum"}},
    _RAW,
    _ALL,
  ),
  (  # KPop, both ways by hand: (0.8, 0.2), (0.4, 0.8), (0.6, 0.5), (0.45, 0.5),
    # (0.05, 0.5) are 0.8318, 0.3820, 0.0204, 0.0050 and 0.8304 at the larger
    areal,
    {"rejection_sampling": {"metric": "binary_kl", "upper": 0.4}},
    [[0, 0.5, 1, 0], [1.2, 0.9, 1, 0]],
    [[0, 1, 1, 0], [1, 1, 1, 0]],
  ),
  (  # their means over the rows: 0.4046 and 0.2139
    areal,
    {"rejection_sampling": {"level": "sequence", "metric": "binary_kl", "upper": 0.3}},
    [[0, 0, 0, 0], _RAW[1]],
    [[0, 0, 0, 0], _ALL[1]],
  ),
  (  # squares 1.92 0.48 0 / 0.033 0.011 0 5.30: without the last the mean is 0.41
    areal,
    {"m2_threshold": 0.5},
    None,
    [[1, 1, 1, 0], [1, 1, 1, 0]],
  ),
  (  # of what is left the geometric means are 1.26 and 1.08 ** (1 / 3)
    areal,
    {"m2_threshold": 0.5, "rejection_sampling": {"level": "sequence", "upper": 1.2}},
    [[0, 0, 0, 0], [*[1.08 ** (1 / 3)] * 3, 0]],
    [[0, 0, 0, 0], [1, 1, 1, 0]],
  ),
  (roll, {}, None, _ALL),
  (roll, {"is_weight": {"enabled": True}}, [[1.2, 0.5, 1, 0], _RAW[1]], _ALL),
  (
    roll,
    {
      "is_weight": {"enabled": True, "weight_type": "sequence", "upper_bound": 1.5},
      "filters": [
        {"enabled": True, "agg_type": "token"},
        {"enabled": True, "agg_type": "geometric"}
        | {"ratio_low": 0.5, "ratio_high": 1.5},
        {"enabled": True, "ratio_enabled": False}
        | {"diff_enabled": True, "diff_low": -0.06},
        {"ratio_high": 0.9},  # off
      ],
    },
    _rows(1.5, 0.108),
    # ratios inside [0.8, 1.2]; differences 0.6 -0.4 0 / 0.1 -0.05 0 -0.45
    [[0, 0, 1, 0], [1, 1, 1, 0]],
  ),
]


@pytest.mark.parametrize(("module", "config", "weight", "mask"), _WEIGHTS)
def test_weight_and_mask_are_those_worked_by_hand(module, config, weight, mask):
  found, kept, metrics = module.correction(config)(_OLD, _SAMPLER, _MASK)
  np.testing.assert_array_equal(kept, mask)
  assert kept.dtype == _MASK.dtype
  assert (found is None) == (weight is None)
  if weight is not None:
    np.testing.assert_allclose(found, weight, rtol=2e-5, atol=1e-7)
  assert all(np.isfinite(value) for value in metrics.values())


_METRICS = [
  (
    trl,
    {"vllm_importance_sampling_mode": "token_truncate"},
    {
      "sampling/sampling_logp_difference/max": np.log(10),
      "sampling/sampling_logp_difference/mean": np.log(4 * 2 * 1.2 / 0.9 * 10) / 7,
      "sampling/importance_sampling_ratio/min": 0.1,
      "sampling/importance_sampling_ratio/mean": 7.7 / 7,
      "sampling/importance_sampling_ratio/max": 3,
    },
  ),
  (trl, {}, {"sampling/importance_sampling_ratio/mean": 1.054}),
  (openrlhf, {}, {"vllm_kl": -np.log(2 * 0.108) / 7}),
  (
    nemo_rl,
    {"use_importance_sampling_correction": True}
    | {"truncated_importance_sampling_type": "tis"}
    | {"truncated_importance_sampling_ratio": 2},
    {
      "token_mult_prob_error": (7 + 1.2 + 1 / 0.9 + 1 + 10) / 7,
      "gen_kl_error": (8.7 - 7 - np.log(0.216)) / 7,
      "policy_kl_error": (0.25 + 2 + 1 + 1 / 1.2 + 1 / 0.9 + 11 - 7 + np.log(0.216))
      / 7,
      "sampling_importance_ratio": 6.7 / 7,
      "is_oob_ratio": 1 / 7,
      "max_seq_mult_prob_error": (1.2 + 1 / 0.9 + 11) / 4,
      "min_seq_mult_prob_error": 7 / 3,
    },
  ),
  (
    ms_swift,
    {"rollout_importance_sampling_mode": "sequence_mask"}
    | {"rollout_importance_sampling_threshold": 1.1},
    {
      "rollout_correction/is_weight_mean": 3.2 / 7,
      "rollout_correction/clipped_frac": 0.5,
      "rollout_correction/chi2_seq": (2 ** (2 / 3) + 0.108**0.5) / 2 - 1,
      "rollout_correction/kl": -np.log(0.216) / 7,
    },
  ),
  (
    tunix,
    {"sampler_is": "token"},
    {
      "sampler_is/weight_mean": 6.7 / 7,
      "sampler_is/weight_max": 2,
      "sampler_is/seq_geo_ratio_mean": (1.259921 + 0.573265) / 2,
      "sampler_trainer/mult_prob_error_max": 10,
      "sampler_is/frac_clipped_at_threshold": 1 / 7,
      "sampler_trainer/prob_diff_mean": (0.6 + 0.4 + 0.1 + 0.05 + 0.45) / 7,
      "sampler_trainer/prob_diff_max": 0.6,
      "sampler_trainer/probs_pearson_corr": np.corrcoef(
        np.exp(_OLD)[_MASK > 0], np.exp(_SAMPLER)[_MASK > 0]
      )[0, 1],
    },
  ),
  (
    areal,
    {"rejection_sampling": {"upper": 2.0, "lower": 0.6}},
    {"rs_filtered_fraction": 3 / 7, "behave_imp_weight": 4.1 / 4},
  ),
  (
    roll,
    {
      "is_weight": {"enabled": True},
      "filters": [{"enabled": True, "agg_type": "geometric"}],
    },
    {
      "actor/is_weight_clipfrac": 1 / 7,
      "actor/train_infer_geometric_ratio_mask_mean": 0,
      "actor/train_infer_ratio_geometric_mean": (1.259921 + 0.573265) / 2,
      "actor/train_infer_final_mask_mean": 0,
    },
  ),
]


@pytest.mark.parametrize(("module", "config", "wanted"), _METRICS)
def test_metrics_are_those_worked_by_hand(module, config, wanted):
  metrics = module.correction(config)(_OLD, _SAMPLER, _MASK)[2]
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_opsm_drops_what_the_learner_left_behind():
  """mean(log sampler - log old) is -0.231 and 0.556; only row 1 is over 0.5."""
  arrays = (_OLD, _SAMPLER, _MASK)
  config = {"off_policy_mask_threshold": 0.5}
  for sign, kept in ((-1.0, 0.0), (1.0, 1.0)):
    advantages = jnp.array([sign, sign])
    weight, mask, _ = trl.correction(config)(*arrays, advantages=advantages)
    np.testing.assert_allclose(weight, _rows(2, 0.108 * kept), rtol=1e-5)
    np.testing.assert_array_equal(mask, _MASK)  # TRL leaves the denominator
    config_swift = {"off_policy_sequence_mask_delta": 0.5}
    weight, mask, _ = ms_swift.correction(config_swift)(*arrays, advantages=advantages)
    assert weight is None
    np.testing.assert_array_equal(mask, _rows(1, kept))  # ms-swift does not
  on_policy = trl.correction(config)(
    *arrays, advantages=-jnp.ones(2), logp=np.nan_to_num(_SAMPLER)
  )
  np.testing.assert_allclose(on_policy[0], _rows(2, 0.108), rtol=1e-5)


@pytest.mark.parametrize(
  ("config", "kept"),
  [
    # probabilities moved by 0.6 -0.4 0 / 0.1 -0.05 0 -0.45
    ({"type": "default"}, [[0, 1, 1, 0], [1, 1, 1, 0]]),
    ({"dppo_mask_high": 0.7, "dppo_mask_low": 0.5}, _ALL),
    ({"type": "ipo", "ipo_threshold": 0.08}, [[0, 0, 1, 0], [0, 1, 1, 0]]),
  ],
)
def test_prime_rl_trust_region(config, kept):
  """Row 0 has A > 0 and loses what rose; row 1 has A < 0 and loses what fell."""
  advantages = np.array([1.0, -2.0])
  weight, mask, metrics = prime_rl.correction(config)(
    _OLD, _SAMPLER, _MASK, advantages=jnp.asarray(advantages)
  )
  assert weight is None
  np.testing.assert_array_equal(mask, kept)
  np.testing.assert_allclose(
    metrics["is_masked"], 1 - np.sum(kept) / _MASK.sum(), atol=1e-6
  )
  k3 = np.where(_MASK, _RATIO - 1 - np.log(_RATIO), 0)
  np.testing.assert_allclose(metrics["mismatch_kl"], k3.sum() / 7, rtol=1e-5)

  fn = prime_rl.policy_loss({**config, "kl_tau": 0.1, "adv_tau": 0.5})
  loss, grad = jax.value_and_grad(
    lambda logp: fn(logp, _SAMPLER, jnp.asarray(advantages), _MASK)[0]
  )(jnp.asarray(_OLD, jnp.float32))
  log_ratio = np.where(_MASK, np.log(_RATIO), 0)
  gain = np.array(kept) * 0.5 * advantages[:, None] * np.exp(log_ratio)
  np.testing.assert_allclose(
    loss, ((0.1 * log_ratio**2 - gain) * _MASK).sum() / 7, rtol=1e-5
  )
  np.testing.assert_allclose(grad, (0.2 * log_ratio - gain) / 7, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("module", "config", "row"),
  [
    # a sampler log-prob of -inf: an infinite ratio
    (trl, {"vllm_importance_sampling_mode": "token_truncate"}, [3.0, 1.0]),
    (nemo_rl, {"use_importance_sampling_correction": True}, [0.0, 1.0]),
    (areal, {"rejection_sampling": {}}, [1.0, 1.0]),
    (tunix, {"sampler_is": "token"}, [0.0, 1.0]),
  ],
)
def test_what_becomes_of_an_infinite_ratio(module, config, row):
  sampler = np.array([[-np.inf, -1.0]])
  weight, _, _ = module.correction(config)(
    np.full((1, 2), -1.0), sampler, np.ones((1, 2))
  )
  np.testing.assert_allclose(weight, [row])


@pytest.mark.parametrize(
  ("metric", "kept"), [("ratio", 1), ("kl_k1", 0), ("kl_k2", 0), ("kl_k3", 0)]
)
def test_areal_drops_a_divergence_that_is_not_finite(metric, kept):
  sampler, old = np.array([[-np.inf, -1.0]]), np.full((1, 2), -1.0)
  config = {"rejection_sampling": {"metric": metric}}
  _, mask, _ = areal.correction(config)(old, sampler, np.ones((1, 2)))
  np.testing.assert_array_equal(mask, [[kept, 1]])


def test_areal_kpop_drops_a_token_that_a_policy_is_certain_of():
  """1 - 1e-8 is 1 in fp32, so its clamp does not hold and 0 log 0 is no number."""
  config = {"rejection_sampling": {"metric": "binary_kl", "upper": 2.0}}
  old, sampler = np.log([[1.0, 0.9]]), np.log([[1.0, 0.8]])
  _, mask, _ = areal.correction(config)(old, sampler, np.ones((1, 2)))
  np.testing.assert_array_equal(mask, [[0, 1]])
  _, mask, _ = areal.native(config)(old, sampler, np.ones((1, 2)))
  np.testing.assert_array_equal(mask, [[1, 1]])


@pytest.mark.parametrize(
  ("section", "upper"),
  [
    ({}, 0.1),
    ({"level": "sequence"}, 0.15),
    ({"level": "sequence", "agg": "sum"}, 0.5),
    ({"level": "sequence", "agg": "max"}, 0.3),
  ],
)
def test_areal_kpop_is_native_where_nobody_is_certain(section, upper):
  rng = np.random.default_rng(0)
  old, sampler = np.log(rng.uniform(0.1, 0.9, (2, 8, 4))).astype(np.float32)
  sampler = (0.4 * sampler + 0.6 * old).astype(np.float32)
  mask = np.arange(4) < rng.integers(1, 5, (8, 1))
  section |= {"metric": "binary_kl", "upper": upper}
  config = {"rejection_sampling": section}
  weight, kept, _ = areal.correction(config)(old, sampler, mask)
  out = areal.native(config)(old, sampler, mask)
  np.testing.assert_array_equal(out.mask, kept)
  assert 0 < kept.sum() < mask.sum()
  np.testing.assert_allclose(np.where(out.mask, out.weight, 0), weight, rtol=1e-5)


def test_tunix_takes_the_geometric_mean_of_raw_differences():
  """-30 and +30 cancel; -30 and +20 leave exp(-5)."""
  log_ratio = np.array([[-30.0, 30.0], [-30.0, 20.0]])
  config = {"sampler_rs": "geometric", "sampler_rs_min": 0.0, "sampler_rs_max": 0.5}
  weight, _, metrics = tunix.correction(config)(
    log_ratio - 40, np.full((2, 2), -40.0), np.ones((2, 2))
  )
  np.testing.assert_array_equal(weight, [[0, 0], [1, 1]])
  np.testing.assert_allclose(metrics["sampler_is/seq_geo_ratio_max"], 1.0, rtol=1e-6)


def test_areals_two_filters_are_a_chain_too():
  config = {"m2_threshold": 0.5, "rejection_sampling": {"level": "sequence"}}
  config["rejection_sampling"]["upper"] = 1.2
  weight, kept, metrics = areal.correction(config)(_OLD, _SAMPLER, _MASK)
  out = areal.native(config)(_OLD, _SAMPLER, _MASK)
  np.testing.assert_array_equal(out.mask, kept != 0)
  np.testing.assert_allclose(np.where(out.mask, out.weight, 0.0), weight, rtol=2e-5)
  # Of the six tokens that the first leaves, the second drops three.
  np.testing.assert_allclose(metrics["rs_filtered_fraction"], 0.5)
