"""Where verl's options stand in its configuration, and which function here reads them.

Names as in verl's `trainer/config/_generated_ppo_trainer.yaml` and the dataclasses
behind it at 1dda039b9 (2026-08-22); those of 2025-10 as at 4424616d7.
"""

from tis_jax.compat.options import Sections

_AGGREGATION = ("loss_agg_mode", "loss_scale_factor", "global_batch_info")
_COMMON = [
  "optim",
  "fsdp_config",
  "fsdp",
  "megatron",
  "torchtitan",
  "veomni",
  "automodel",
  "engine",
  "rollout_n",
  "strategy",
  "ppo_mini_batch_size",
  "ppo_micro_batch_size",
  "ppo_micro_batch_size_per_gpu",
  "use_dynamic_bsz",
  "ppo_max_token_len_per_gpu",
  "ppo_infer_micro_batch_size_per_gpu",
  "ppo_infer_max_token_len_per_gpu",
  "ppo_epochs",
  "shuffle",
  "data_loader_seed",
  "checkpoint",
  "profiler",
  "grad_clip",
  "ulysses_sequence_parallel_size",
  "use_remove_padding",
  "use_fused_kernels",
  "model_config",
  "load_weight",
]
_READERS = {
  "correction": {
    "algorithm.rollout_correction": (
      *("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize"),
      *("rollout_rs", "rollout_rs_threshold", "bypass_mode", "loss_type"),
    )
  },
  "correction of 2025-10": {
    "algorithm": (
      *("rollout_is", "rollout_is_threshold", "rollout_is_threshold_lower"),
      *("rollout_is_level", "rollout_is_mode", "rollout_is_veto_threshold"),
    )
  },
  "policy_loss": {
    "actor_rollout_ref.actor": (
      *_AGGREGATION,
      *("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c"),
      *("tau_pos", "tau_neg"),
    ),
    "actor_rollout_ref.actor.policy_loss": (
      *("loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio"),
      *("ppo_kl_coef", "dro_beta", "rollout_correction"),
    ),
  },
  "agg_loss": {"actor_rollout_ref.actor": _AGGREGATION},
  "value_loss": {"critic": ("cliprange_value", *_AGGREGATION)},
  "advantages": {
    "algorithm": (
      *("adv_estimator", "gamma", "lam", "norm_adv_by_std_in_grpo", "f_norm"),
      *("gdpo_reward_keys", "gdpo_reward_weights"),
    )
  },
  "kl_penalty": {
    "algorithm": ("kl_penalty", "use_kl_in_reward"),
    "actor_rollout_ref.actor": ("kl_loss_type", "use_kl_loss"),
  },
  "update": {
    "algorithm": ("kl_penalty", "use_kl_in_reward", "kl_ctrl"),
    "actor_rollout_ref.actor": (
      *("entropy_coeff", "ppo_epochs", "shuffle"),
      *("kl_loss_type", "use_kl_loss", "kl_loss_coef"),
    ),
  },
}
_OTHERS = {
  "": [
    "data",
    "custom_reward_function",
    "reward_model",
    "sandbox_fusion",
    "reward",
    "distillation",
    "transfer_queue",
    "trainer",
    "global_profiler",
    "skip",
    "ray_kwargs",
    "ray_init",
  ],
  "actor_rollout_ref": ("ref", "rollout", "model", "hybrid_engine", "nccl_timeout"),
  "algorithm": ("filter_groups", "use_pf_ppo", "pf_ppo"),
  "actor_rollout_ref.actor": (
    *_COMMON,
    *("freeze_vision_tower", "calculate_entropy", "calculate_sum_pi_squared"),
    *("use_prefix_grouper", "use_torch_compile", "router_replay", "qat"),
    "entropy_from_logits_with_chunking",
    *("entropy_from_logits_chunk_size", "entropy_checkpointing", "pad_to_length"),
    "use_rollout_log_probs",
  ),
  "critic": (
    *_COMMON,
    *("enable", "model", "forward_max_token_len_per_gpu", "forward_micro_batch_size"),
    "forward_micro_batch_size_per_gpu",
  ),
}
SECTIONS = Sections("verl", _READERS, _OTHERS)
used = SECTIONS.used
