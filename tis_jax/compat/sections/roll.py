"""Where ROLL's options stand: `train_infer_correction` of its YAML.

Names as in its `configs/base_config.py`, `rlvr_config.py` and `agentic_config.py` at
8eb27cc (2026-08-19). ROLL lets a YAML hold names of its own at the root, which others
refer to: those of its examples are known here, another one is refused.
"""

from tis_jax.compat.options import Sections

_ROOT = """
  generate_opt_level is_num_return_sequences_expand max_running_requests
  is_use_additional_prompts max_additional_running_prompts
  user_defined_rollout_loop_cls router_args exp_name seed rpc_timeout output_dir
  base_dir logging_dir rollout_dump_dir track_with tracker_kwargs max_steps save_steps
  max_ckpt_to_keep logging_steps eval_steps rollout_batch_size val_batch_size
  local_rank resume_from_checkpoint checkpoint_config prompt_length response_length
  sequence_length val_prompt_length val_sequence_length profiler_timeline
  profiler_memory report_length_and_rewards is_offload_states
  is_offload_optimizer_states_in_train_step length_profiler_dir profiler_output_dir
  otlp_output_dir system_envs model_update_buffer_size_mb num_nodes num_gpus_per_node
  model_download_type rollout_mock transfer_backend pretrain reward_pretrain
  actor_train actor_infer critic reference reward async_generation_ratio ppo_epochs
  max_grad_norm l2 lambd gamma pg_clip use_pg_clip_range pg_clip_low pg_clip_high
  value_clip kl_penalty target_kl init_kl_coef kl_horizon use_reward_scaling
  add_len_reward reward_clip use_reward_norm whiten_rewards whiten_advantages
  advantage_clip adv_estimator norm_mean_type norm_std_type add_token_level_kl
  critic_warmup use_kl_loss kl_loss_coef entropy_loss_coef loss_agg_mode
  dual_clip_loss enable_reference enable_old_logprobs_recompute
  force_disable_old_logprobs_recompute pure_opd_pipeline_type teacher student_train
  student_infer is_pure_opd use_opd custom_envs train_env_manager val_env_manager
  render_save_dir reward_normalization env_monitor dirty_data_mask open_feedback_turn
  use_token_reward batch_adjust_mode episode_reward_weight step_reward_weight
  step_reward_gamma ratio_type exp_mode partial_gpu_mode
  parse_tool_call_parameter_to_dict skip_mock_system_prompt global_template
  tag_to_template dataset_filter num_return_sequences_in_group save_logging_board_dir
  validation rewards reward_model difficulty_loss_weight length_loss_weight
  postive_loss_coef use_topr_neg_loss_coef use_policy_loss_type use_topr_loss
  rl_loss_coef importance_sampling val_greedy val_n_sample max_len_mask mask_type
  difficulty_mask balance_length minibatch_data_iter_num difficulty_low_threshold
  difficulty_high_threshold error_max_len_clip error_max_len_threshold
"""
_OF_EXAMPLES = """
  action_pattern agent_config_common agent_runner_cls agent_system_template
  agent_template all_response_pattern code_agent_system_template code_agent_template
  custom_env default_history_length env_manager_cls frozen_format_penalty
  game_agent_system_template game_agent_template gem_code gem_games gem_math gem_qa
  gem_rg lora_alpha lora_rank lora_target math_agent_system_template
  math_agent_template max_actions_per_traj max_tokens_per_step model_name
  next_step_template offload_nccl pg_variant pre_step_template
  qa_agent_system_template qa_agent_template reward_norm reward_scale reward_shift
  reward_system_config rg_agent_system_template rg_agent_template
  single_prompt_agent_system_template single_prompt_agent_template
  sokoban_format_penalty think_action_pattern world_size
"""

_READERS = {"correction": {"train_infer_correction": ("is_weight", "filters")}}
SECTIONS = Sections("ROLL", _READERS, {"": _ROOT + _OF_EXAMPLES})
