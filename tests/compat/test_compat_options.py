"""A config with a mistake in it fails when it is built, and says whose and where."""

import pytest

from tis_jax import compat
from tis_jax.compat import (
  areal,
  ms_swift,
  nemo_rl,
  openrlhf,
  prime_rl,
  roll,
  skyrl,
  slime,
  trl,
  tunix,
  verl,
)

_UNKNOWN = [
  # what is built, the misspelt config, what the message says
  (verl.correction, {"rolout_is": "token"}, "verl .*'rolout_is'.*'rollout_is'"),
  (
    verl.correction,
    {"rollout_is_level": "token", "rollout_is_thresh": 2.0},
    r"verl \(2025-10\) .*'rollout_is_thresh'.*'rollout_is_threshold'",
  ),
  (verl.policy_loss, {"loss_agg": "token-mean"}, "verl .*'loss_agg'.*'loss_agg_mode'"),
  (
    verl.policy_loss,
    {"policy_loss": {"loss_modes": "gspo"}},
    "verl .*'loss_modes'.*'loss_mode'",
  ),
  (
    verl.policy_loss,
    {"rollout_correction": {"rollout_iss": 1}, "loss_mode": "bypass_mode"},
    "verl .*'rollout_iss'.*'rollout_is'",
  ),
  (verl.advantages, {"gama": 1.0}, "verl .*'gama'.*'gamma'"),
  (verl.kl_penalty, {"kl": "k1"}, "verl .*'kl'.*'kl_"),
  (skyrl.correction, {"tis_ratio": "token"}, "SkyRL .*'tis_ratio'.*'tis_ratio_type'"),
  (
    skyrl.correction,
    {"off_policy_correction": {"geo_mask_lo": 1}},
    "SkyRL .*'geo_mask_lo'.*'geo_mask_low'",
  ),
  (skyrl.policy_loss, {"policy_loss": "gspo"}, "'policy_loss'.*'policy_loss_type'"),
  (
    skyrl.policy_loss,
    {"cispo": {"anchor": "old"}},
    "SkyRL cispo .*'anchor'.*'cispo_anchor'",
  ),
  (skyrl.advantages, {"lambda": 1.0}, "SkyRL .*'lambda'.*'lambd'"),
  (skyrl.reduction, {"max_len": 8}, "SkyRL .*'max_len'.*'max_seq_len'"),
  (slime.correction, {"tis_upper": 2.0}, "slime .*'tis_upper'.*'tis_upper_bound'"),
  (trl.correction, {"vllm_importance_sampling": True}, "TRL .*'vllm_importance"),
  (openrlhf.correction, {"is_correction_level": "seq"}, "OpenRLHF .*_level"),
  (areal.correction, {"behave_imp_weight_cap": 5.0}, "AReaL .*'behave_imp_weight_cap'"),
  (
    areal.correction,
    {"rejection_sampling": {"uper": 2.0}},
    "AReaL rejection_sampling .*'uper'.*'upper'",
  ),
  (nemo_rl.correction, {"truncated_ratio": 2.0}, "NeMo-RL .*'truncated_ratio'"),
  (prime_rl.correction, {"kl_tao": 1.0}, "prime-rl .*'kl_tao'.*'kl_tau'"),
  (roll.correction, {"is_weights": {}}, "ROLL .*'is_weights'.*'is_weight'"),
  (
    roll.correction,
    {"filters": [{}, {"agg": "token"}]},
    r"ROLL filters\[1\] .*'agg'.*'agg_type'",
  ),
  (ms_swift.correction, {"rollout_is_mode": "x"}, "ms-swift .*'rollout_is_mode'"),
  (tunix.correction, {"sampler_iss": "token"}, "Tunix .*'sampler_iss'.*'sampler_is'"),
]


@pytest.mark.parametrize(("build", "config", "message"), _UNKNOWN)
def test_an_unknown_key_is_named_with_the_peer_and_the_nearest(build, config, message):
  with pytest.raises(ValueError, match=message):
    build(config)


_IMPOSSIBLE = [
  (verl.correction, {"rollout_is": "geometric"}, "verl: rollout_is must be one of"),
  (
    verl.correction,
    {"rollout_is_threshold": 0},
    "verl: rollout_is_threshold .*above 0",
  ),
  (verl.correction, {"rollout_is_threshold": True}, "rollout_is_threshold .*a number"),
  (verl.correction, {"rollout_is_threshold": "5_0.5"}, "verl: .* is above .*nothing"),
  (verl.correction, {"rollout_is_threshold": "lo_hi"}, "verl: .*a number; got 'lo'"),
  (verl.correction, {"rollout_rs": "token_k1"}, "verl: .*needs rollout_rs_threshold"),
  (
    verl.correction,
    {"rollout_rs": "geometric", "rollout_rs_threshold": "0.9_1.1"},
    "verl: rollout_rs 'geometric' was removed; write 'seq_mean_k1'",
  ),
  (
    verl.correction,
    {"rollout_rs": "seq_max_k1", "rollout_rs_threshold": 2.0},
    "verl: rollout_rs must be one of .*; got 'seq_max_k1'",
  ),
  (
    verl.correction,
    {"rollout_rs": "token_k3", "rollout_rs_threshold": "0.1_0.2"},
    "verl: .*token_k3 takes one upper bound",
  ),
  (
    verl.correction,
    {"rollout_rs": "token_k1,token_k2", "rollout_rs_threshold": "1,2,3"},
    "verl: rollout_rs_threshold must hold 1 or 2 bounds",
  ),
  (
    verl.correction,
    {"rollout_rs": "token_k1", "rollout_rs_threshold": 0.5},
    "verl: .* is above",  # the lower bound is then 1 / 0.5
  ),
  (verl.correction, {"loss_type": "ppo"}, "verl: loss_type must be one of"),
  (
    verl.correction,
    {"rollout_is_mode": "drop", "rollout_is_threshold": 2.0},
    "verl .*: rollout_is_mode must be one",
  ),
  (
    verl.correction,
    {"rollout_is_threshold": 2.0, "rollout_is_threshold_lower": 3.0},
    "verl .*: rollout_is_threshold_lower .*is above",
  ),
  (
    verl.correction,
    {"rollout_is_level": "token"},
    "verl .*rollout_is_threshold is not",
  ),
  (verl.policy_loss, {"clip_ratio_c": 1.0}, "verl: clip_ratio_c must be above 1"),
  (
    verl.policy_loss,
    {"clip_ratio_low": -0.1},
    "verl: clip_ratio_low must be at least 0",
  ),
  (verl.policy_loss, {"loss_mode": "dro"}, "verl: loss_mode 'dro' needs dro_beta"),
  (verl.policy_loss, {"loss_agg_mode": "mean"}, "verl: loss_agg_mode must be one of"),
  (verl.advantages, {"adv_estimator": "ppo"}, "verl: adv_estimator must be one of"),
  (verl.kl_penalty, {"kl_penalty": "full"}, "verl: kl_penalty must be one of"),
  (
    verl.kl_penalty,
    {"kl_penalty": "k1", "kl_loss_type": "k3"},
    "verl: give kl_penalty or kl_loss_type",
  ),
  (skyrl.correction, {"use_tis": True}, "SkyRL: tis_imp_ratio_cap .*above 0; got -1.0"),
  (skyrl.correction, {"use_tis": True}, "README .* set tis_imp_ratio_cap to 2.0"),
  (
    skyrl.correction,
    {"use_tis": True, "tis_imp_ratio_cap": 0},
    "SkyRL: tis_imp_ratio_cap .*above 0",
  ),
  (skyrl.policy_loss, {"use_tis": True}, "SkyRL: tis_imp_ratio_cap .*above 0"),
  (skyrl.correction, {"sequence_mask_metric": "sum"}, "SkyRL: sequence_mask_metric"),
  (skyrl.correction, {"geo_mask_low": 1.2}, "SkyRL: geo_mask_low .*is above"),
  (
    skyrl.correction,
    {"token_mask_is_threshold_low": 0.5},
    "SkyRL: token_mask_is_threshold_low and .*set both or neither",
  ),
  (
    skyrl.correction,
    {"token_tis_ratio_clip_high": -2.0},
    "SkyRL: token_tis_ratio_clip_high must be above 0",
  ),
  (
    skyrl.policy_loss,
    {"cispo": {"cispo_anchor": "ref"}},
    "SkyRL: cispo_anchor must be",
  ),
  (skyrl.reduction, {"loss_reduction": "token_sum"}, "SkyRL: loss_reduction"),
  (skyrl.kl_penalty, {"kl_estimator_type": "k4"}, "SkyRL: kl_estimator_type"),
  (skyrl.value_loss, {"value_clip": -0.2}, "SkyRL: value_clip must be at least 0"),
  (
    skyrl.reduction,
    {"loss_reduction": "seq_mean_token_sum_norm"},
    "SkyRL: max_seq_len must be a number",
  ),
  (slime.correction, {"tis_mode": "drop"}, "slime: tis_mode must be one of"),
  (slime.correction, {"use_tis": 1}, "slime: use_tis must be true or false"),
  (slime.correction, "--use-tis --tis-clip 5", "slime: 'tis_clip' is of its own TIS"),
  (
    slime.correction,
    {"use_tis": True, "tis_level": "geometric"},
    "slime: tis_batch_normalize works at",
  ),
  (
    slime.correction,
    {"use_rs": True, "rs_lower_bound": 3.0},
    "slime: rs_lower_bound .*is above rs_upper_bound",
  ),
  (trl.correction, {"vllm_importance_sampling_cap": 0}, "TRL: .*_cap must be above 0"),
  (
    trl.correction,
    {"vllm_importance_sampling_clip_min": 4.0},
    "TRL: .*_clip_min .*is above .*_clip_max",
  ),
  (openrlhf.correction, {"is_correction_type": "mis"}, "OpenRLHF: is_correction_type"),
  (openrlhf.correction, {"is_correction_threshold": [2.0]}, "OpenRLHF: .*two bounds"),
  (
    openrlhf.correction,
    {"is_correction_threshold": [5, 0.5]},
    r"OpenRLHF: is_correction_threshold\[0\] .*is above",
  ),
  (
    areal.correction,
    {"rejection_sampling": {"upper": 0.9}},
    "AReaL rejection_sampling: upper must be above 1",
  ),
  (
    areal.correction,
    {"rejection_sampling": {"action": "clamp", "metric": "kl_k3"}},
    "AReaL rejection_sampling: action 'clamp' goes with metric 'ratio'",
  ),
  (
    nemo_rl.correction,
    {"truncated_importance_sampling_type": "tis"},
    "NeMo-RL: .*needs use_importance_sampling_correction",
  ),
  (
    nemo_rl.correction,
    {
      "use_importance_sampling_correction": True,
      "truncated_importance_sampling_type": "icepop",
      "truncated_importance_sampling_ratio": 5.0,
    },
    "NeMo-RL: .*'icepop' needs truncated_importance_sampling_ratio_min",
  ),
  (nemo_rl.correction, {"seq_logprob_error_threshold": 0.9}, "NeMo-RL: .*at least 1"),
  (prime_rl.correction, {"type": "dppo"}, "prime-rl: type must be one of"),
  (
    prime_rl.correction,
    {"dppo_mask_low": -0.2},
    r"prime-rl \(2026-08\): dppo_mask_low must be above",
  ),
  (prime_rl.correction, {"kl_tau": 1e-3}, "prime-rl: give a type beside kl_tau"),
  (
    prime_rl.correction,
    {"type": "icepop", "eps": 0.3},
    "prime-rl icepop has no option 'eps'",
  ),
  (
    prime_rl.policy_loss,
    {"type": "icepop", "ratio_low": 6.0},
    "prime-rl icepop: ratio_low .*is above ratio_high",
  ),
  (
    prime_rl.policy_loss,
    {"type": "ppo", "max_importance_ratio": 1.1},
    "prime-rl ppo: max_importance_ratio must be at least 1.2",
  ),
  (
    areal.correction,
    {"rejection_sampling": {"metric": "binary_kl", "action": "clamp"}},
    "AReaL rejection_sampling: action 'clamp' goes with metric 'ratio'",
  ),
  (roll.correction, {"is_weight": {"detach": False}}, "ROLL is_weight: detach must be"),
  (
    roll.correction,
    {"filters": [{"ratio_low": 1.5}]},
    r"ROLL filters\[0\]: ratio_low .*is above ratio_high",
  ),
  (
    ms_swift.correction,
    {"rollout_importance_sampling_mode": "token"},
    "ms-swift: rollout_importance_sampling_mode must be one of",
  ),
  (tunix.correction, {"sampler_is": "sequence"}, "Tunix: sampler_is must be one of"),
  (tunix.correction, {"sampler_rs": "token"}, "Tunix: sampler_rs needs"),
  (tunix.correction, {"sampler_rs_min": 0.5}, "Tunix: .*set both or neither"),
]


@pytest.mark.parametrize(("build", "config", "message"), _IMPOSSIBLE)
def test_an_impossible_value_is_named_with_the_peer(build, config, message):
  with pytest.raises(ValueError, match=message):
    build(config)


@pytest.mark.parametrize("name", compat.PEERS)
def test_every_peer_has_defaults_and_a_native_chain(name):
  peer = getattr(compat, name)
  peer.correction()
  peer.correction({})
  peer.native()


@pytest.mark.parametrize("name", compat.PEERS)
def test_a_config_that_is_no_mapping_is_refused(name):
  with pytest.raises(TypeError, match="must be a mapping"):
    getattr(compat, name).correction(["rollout_is"])


def test_text_as_yaml_leaves_it_is_read():
  """PyYAML reads 1e-4 as text."""
  native = slime.native({"use_rs": True, "rs_veto_threshold": "1e-4"})
  same = slime.native({"use_rs": True, "rs_veto_threshold": 1e-4})
  assert native == same


def test_a_config_dict_is_a_mapping():
  ml_collections = pytest.importorskip("ml_collections")
  config = ml_collections.ConfigDict(
    {"off_policy_correction": {"tis_ratio_type": "token"}, "sapo": {"tau_pos": 2.0}}
  )
  skyrl.policy_loss(config)
