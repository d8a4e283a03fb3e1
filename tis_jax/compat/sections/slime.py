"""slime's options: flags of its command line, keys of its helper's YAML.

Names as in its `utils/arguments.py` and `examples/train_infer_mismatch_helper/mis.yaml`
at 624b824 (2026-08-21). Of SGLang's server and router the prefix is known alone.
"""

from tis_jax.compat.options import Sections
from tis_jax.compat.sections.megatron import MEGATRON_ARGUMENTS

_OWN = (
  "use_tis",
  "tis_mode",
  "tis_level",
  "tis_lower_bound",
  "tis_upper_bound",
  "tis_batch_normalize",
  "use_rs",
  "rs_level",
  "rs_lower_bound",
  "rs_upper_bound",
  "rs_veto_threshold",
  "tis_clip",
  "tis_clip_low",
)
_OTHERS = """
  train_backend debug_rollout_only debug_train_only load_debug_rollout_data
  custom_config_path padded_vocab_size actor_num_nodes actor_num_gpus_per_node
  rollout_num_gpus rollout_num_gpus_per_engine num_gpus_per_node colocate offload
  offload_train offload_rollout distributed_backend distributed_timeout_minutes
  qwen_gdn_backend train_env_vars update_weight_mode update_weight_transport
  release_train update_weight_disk_dir update_weight_disk_keep_files
  update_weight_delta_encoding update_weight_delta_checksum
  custom_update_weight_post_write_path update_weight_local_checkpoint_dir
  custom_model_provider_path recompute_loss_function log_probs_chunk_size
  only_train_params_name_list freeze_params_name_list freeze_indexer allgather_cp
  hf_checkpoint model_name rollout_function_path rollout_temperature rollout_top_p
  rollout_top_k rollout_max_context_len rollout_max_prompt_len
  rollout_max_response_len rollout_skip_special_tokens rollout_stop
  rollout_stop_token_ids rollout_shuffle rollout_seed over_sampling_batch_size
  dynamic_sampling_filter_path partial_rollout mask_offpolicy_in_partial_rollout
  custom_generate_function_path rollout_sample_hook_path
  custom_rollout_log_function_path custom_eval_rollout_log_function_path
  buffer_filter_path update_weight_buffer_size update_weights_interval keep_old_actor
  rollout_data_postprocess_path rollout_data_transport rollout_external_engine_addrs
  use_fault_tolerance rollout_health_check_interval rollout_health_check_timeout
  rollout_health_check_first_wait num_rollout num_epoch disable_rollout_global_dataset
  data_source_path prompt_data apply_chat_template apply_chat_template_kwargs
  input_key label_key multimodal_keys metadata_key tool_key start_rollout_id
  rollout_batch_size n_samples_per_prompt global_batch_size num_steps_per_rollout
  micro_batch_size balance_data balance_by_flops use_dynamic_batch_size
  max_tokens_per_gpu log_probs_max_tokens_per_gpu eval_function_path eval_interval
  eval_prompt_data eval_config skip_eval_before_train eval_input_key eval_label_key
  eval_tool_key n_samples_per_eval_prompt eval_temperature eval_top_p eval_top_k
  eval_max_response_len eval_max_prompt_len eval_min_new_tokens eval_max_context_len
  ref_load ref_ckpt_step load save save_interval async_save no_save_optim save_hf seed
  clip_grad calculate_per_token_loss lr num_critic_only_steps megatron_config_path
  eps_clip eps_clip_high eps_clip_c value_clip kl_coef loss_type
  custom_loss_function_path kl_loss_type advantage_estimator
  disable_compute_advantages_and_returns custom_advantage_function_path use_kl_loss
  kl_loss_coef use_unbiased_kl ref_update_interval entropy_coef gamma lambd
  normalize_advantages disable_grpo_std_normalization disable_rewards_normalization
  use_rollout_entropy get_mismatch_metrics reset_optimizer_states use_stateless_adam
  use_rollout_logprobs custom_tis_function_path custom_pg_loss_reducer_function_path
  use_routing_replay use_rollout_routing_replay use_opsm opsm_delta use_opd opd_type
  opd_kl_coef opd_teacher_load opd_teacher_ckpt_step use_wandb wandb_mode wandb_dir
  wandb_key wandb_host wandb_team wandb_group wandb_project
  disable_wandb_random_suffix wandb_always_use_train_step log_multi_turn log_passrate
  log_reward_category log_correct_samples wandb_run_id use_tensorboard tb_project_name
  tb_experiment_name save_debug_rollout_data load_forge_rollout_data
  load_debug_rollout_data_subsample save_debug_train_data dump_details
  memory_snapshot_dir memory_snapshot_num_steps profile_target memory_recorder
  record_memory_history check_weight_update_equal http_proxy use_distributed_post
  rm_type reward_key eval_reward_key group_rm rm_url custom_rm_path
  custom_reward_post_process_path custom_convert_samples_to_train_data_path
  rollout_buffer_url fetch_trajectory_retry_times min_batch_collection_ratio
  rollout_task_type loss_mask_type data_pad_size_multiplier rollout_sample_filter_path
  rollout_all_samples_process_path custom_megatron_init_path
  custom_megatron_before_log_prob_hook_path
  custom_megatron_before_train_step_hook_path megatron_deepgemm_forward_layers
  megatron_deepgemm_forward_modules megatron_deepgemm_moe_forward_layers
  megatron_deepgemm_moe_forward_modules mtp_num_layers mtp_loss_scaling_factor
  enable_mtp_training ci_test ci_disable_kl_checker
  ci_train_rollout_logprob_abs_diff_threshold ci_save_grad_norm ci_load_grad_norm
  prefill_num_servers sglang_* router_*
"""

SECTIONS = Sections(
  "slime",
  {"correction": {"": _OWN}},
  {"": _OTHERS + MEGATRON_ARGUMENTS},
  flags=True,
  files=("custom_config_path",),
)
