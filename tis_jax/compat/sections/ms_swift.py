"""ms-swift's options: flags of `swift rlhf`, keys of its YAML.

Names as in its `arguments/rlhf_args.py` (`RLHFArguments` and all it extends) at 3602360
(2026-08-22). The flags of `megatron rlhf` that these do not have are not known here.
"""

from tis_jax.compat.options import Sections
from tis_jax.compat.sections.transformers import TRAINING_ARGUMENTS

_OWN = (
  "rollout_importance_sampling_mode",
  "rollout_importance_sampling_threshold",
  "log_rollout_offpolicy_metrics",
  "off_policy_sequence_mask_delta",
)
_OTHERS = """
  rlhf_type ref_model ref_adapters ref_model_type ref_model_revision beta
  label_smoothing max_completion_length loss_scale rpo_alpha ld_alpha discopop_tau
  loss_type loss_weights cpo_alpha simpo_gamma desirable_weight undesirable_weight
  temperature center_rewards_coefficient sft_alpha lmbda seq_kd gkd_logits_topk
  max_new_tokens teacher_model teacher_adapters teacher_model_type
  teacher_model_revision teacher_deepspeed teacher_model_server offload_teacher_model
  num_generations reward_funcs reward_weights log_completions num_iterations
  truncation_strategy epsilon epsilon_high delta cosine_min_len_value_wrong
  cosine_max_len_value_wrong cosine_min_len_value_correct cosine_max_len_value_correct
  cosine_max_len repetition_n_grams repetition_max_penalty reward_model
  reward_model_plugin chord_sft_dataset chord_sft_per_device_train_batch_size
  chord_enable_phi_function chord_mu_warmup_steps chord_mu_decay_steps chord_mu_peak
  chord_mu_valley sync_ref_model ref_model_sync_steps ref_model_mixup_alpha
  multi_turn_scheduler max_turns completion_length_limit_scope
  vllm_server_pass_dataset use_gym_env gym_env dynamic_sample max_resample_times
  overlong_filter soft_max_length soft_cache_length scale_rewards log_entropy
  top_entropy_quantile importance_sampling_level tau_pos tau_neg advantage_estimator
  kl_in_reward teacher_kl_coef advantage_reweight rlsd_lambda rlsd_reweight_clip_range
  rlsd_lambda_warmup_steps rlsd_lambda_decay_steps rlsd_negative_only sdar_loss_coef
  sdar_gate_beta real_tau fipo_decay_rate fipo_clip_range fipo_clip_high_only
  fipo_safety_threshold num_generations_eval dataset_shuffle top_k top_p min_p
  repetition_penalty stop_words use_vllm vllm_mode vllm_max_num_seqs
  vllm_enable_prefix_caching vllm_enable_lora lora_rank vllm_server_base_url
  vllm_server_host vllm_server_port vllm_server_timeout vllm_server_group_port
  enable_flattened_weight_sync async_generate structured_outputs_regex sleep_level
  move_model_batches offload_optimizer offload_model wandb_log_unique_prompts
  generation_batch_size steps_per_generation teacher_tag_key
  vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_pipeline_parallel_size
  vllm_enable_expert_parallel vllm_max_model_len vllm_disable_custom_all_reduce
  vllm_enforce_eager vllm_limit_mm_per_prompt vllm_max_lora_rank vllm_use_async_engine
  vllm_quantization vllm_reasoning_parser vllm_disable_cascade_attn
  vllm_mm_processor_cache_gb vllm_speculative_config vllm_engine_kwargs
  vllm_data_parallel_size num_ppo_epochs whiten_rewards kl_coef cliprange vf_coef
  cliprange_value gamma lam num_mini_batches local_rollout_forward_batch_size
  num_sample_generations response_length missing_eos_penalty reward_adapters
  reward_model_type reward_model_revision reward_template add_version
  create_checkpoint_symlink load_args zero_hpz_partition_size deepspeed_autotp_size
  swanlab_token swanlab_project swanlab_workspace swanlab_exp_name
  swanlab_notification_method swanlab_webhook_url swanlab_secret swanlab_sender_email
  swanlab_receiver_email swanlab_smtp_server swanlab_smtp_port swanlab_email_language
  swanlab_mode freeze_parameters freeze_parameters_regex freeze_parameters_ratio
  trainable_parameters trainable_parameters_regex freeze_llm freeze_vit freeze_aligner
  target_modules target_regex target_parameters modules_to_save lora_alpha
  lora_dropout lora_bias lora_dtype lorap_lr_ratio use_rslora use_dora
  lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale
  lora_ga_stable_gamma init_weights fourier_n_frequency fourier_scaling
  boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout vera_rank
  vera_projection_prng_key vera_dropout vera_d_initial adapter_act adapter_length
  adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT
  adalora_beta1 adalora_beta2 adalora_orth_reg_weight llamapro_num_new_blocks
  llamapro_num_groups reft_layer_key reft_layers reft_rank reft_intervention_type
  reft_args tuner_backend tuner_type adapters external_plugins custom_register_path
  model_kwargs enable_npu_model_patch load_data_args packing packing_length
  packing_num_proc packing_strategy lazy_tokenize use_hf ignore_args_error
  use_swift_lora num_beams stream logprobs top_logprobs quant_method quant_bits
  hqq_axis bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant
  bnb_4bit_quant_storage dataset val_dataset cached_dataset cached_val_dataset
  split_dataset_ratio dataset_num_proc load_from_cache_file val_dataset_shuffle
  streaming interleave_prob stopping_strategy shuffle_buffer_size download_mode
  columns strict disable_auto_column_mapping model_name model_author
  custom_dataset_info template system max_length max_pixels agent_template norm_bbox
  use_chat_template padding_side padding_free sequence_parallel_size
  is_binary_loss_scale template_backend response_prefix enable_thinking
  preserve_thinking add_non_thinking_prefix disable_ignore_empty_think model
  model_type model_revision task_type torch_dtype attn_impl experts_impl
  new_special_tokens num_labels problem_type rope_scaling device_map max_memory
  max_model_len local_repo_path init_strategy use_ray ray_exp_name device_groups
  vit_gradient_checkpointing router_aux_loss_coef enable_dft_loss enable_channel_loss
  safe_serialization max_shard_size check_model acc_strategy train_dataloader_shuffle
  max_epochs aligner_lr vit_lr use_logits_to_keep ds3_gather_for_generation
  resume_only_model optimizer mrl_dims eval_metric callbacks early_stop_interval
  eval_use_evalscope eval_dataset eval_dataset_args eval_limit eval_generation_config
  extra_eval_args use_galore galore_target_modules galore_rank galore_update_proj_gap
  galore_scale galore_proj_type galore_optim_per_parameter galore_with_embedding
  galore_quantization galore_proj_quant galore_proj_bits galore_proj_group_size
  galore_cos_threshold galore_gamma_proj galore_queue_size lisa_activated_layers
  lisa_step_interval use_flash_ckpt sortish_sampler predict_with_generate
  generation_max_length generation_num_beams generation_config ENV
"""

SECTIONS = Sections(
  "ms-swift",
  {"correction": {"": _OWN}},
  {"": _OTHERS + TRAINING_ARGUMENTS},
  flags=True,
)
