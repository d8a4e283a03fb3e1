"""Where NeMo-RL's options stand: `loss_fn` and `grpo` of its YAML.

Names as in its `algorithms/grpo.py` and `algorithms/loss/loss_functions.py` at 7ea279a
(2026-08-22), and three that are in its examples alone.
"""

from tis_jax.compat.options import Sections

_ROOT = """
  policy env data logger cluster checkpointing reward_penalties data_plane
  on_policy_distillation async_rl
"""
_GRPO = """
  num_prompts_per_step num_generations_per_prompt max_num_epochs max_num_steps
  max_rollout_turns normalize_rewards advantage_clip_low advantage_clip_high
  use_leave_one_out_baseline val_period val_start_at val_batch_size val_at_start
  val_at_end max_val_samples val_num_generations_per_prompt stop_at_validation_metric
  stop_at_validation_threshold skip_reference_policy_logprobs_calculation seed
  async_grpo overlong_filtering use_dynamic_sampling dynamic_sampling_max_gen_batches
  batch_multiplier reward_shaping reward_scaling calculate_advantages_on_gpu
  invalid_tool_call_advantage malformed_thinking_advantage adv_estimator
  deduplicate_multimodal_data debug_payload_metrics zero_variance_prompt_filtering
  num_val_generations_per_prompt
"""
_LOSS = """
  disable_ppo_ratio token_level_loss ratio_clip_min ratio_clip_max ratio_clip_c
  reference_policy_kl_penalty reference_policy_kl_type kl_input_clamp_value
  kl_output_clamp_value use_kl_in_reward use_on_policy_kl_approximation
  force_on_policy_ratio use_cispo positive_example_nll_weight
"""

_READERS = {
  "correction": {
    "loss_fn": (
      "use_importance_sampling_correction",
      "truncated_importance_sampling_type",
      "truncated_importance_sampling_ratio",
      "truncated_importance_sampling_ratio_min",
      "sequence_level_importance_ratios",
    ),
    "grpo": ("seq_logprob_error_threshold",),
  }
}
SECTIONS = Sections("NeMo-RL", _READERS, {"": _ROOT, "grpo": _GRPO, "loss_fn": _LOSS})
