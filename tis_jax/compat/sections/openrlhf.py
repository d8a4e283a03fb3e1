"""Where OpenRLHF's options stand: `--algo.advantage.is_correction_*` among its flags.

Names as in its `cli/train_ppo_ray.py` at 3c3be62 (2026-08-13).
"""

from tis_jax.compat.options import Sections

_READERS = {
  "correction": {
    "algo.advantage": (
      "is_correction_enable",
      "is_correction_type",
      "is_correction_threshold",
    )
  }
}
_OTHERS = {
  "": """
    local_rank use_ms
  """,
  "actor": """
    num_nodes num_gpus_per_node gradient_checkpointing_enable
    gradient_checkpointing_reentrant eps_clip eps_clip_low_high dual_clip
    policy_loss_type aux_loss_coef entropy_coef model_name_or_path
    freeze_visual_encoder optim lr_scheduler lr_warmup_ratio min_lr_ratio max_norm
  """,
  "actor.adam": """
    lr betas eps weight_decay
  """,
  "actor.muon": """
    lr momentum ns_steps nesterov no_nesterov
  """,
  "algo": """
    dynamic_filtering_enable dynamic_filtering_range
  """,
  "algo.advantage": """
    lambd gamma estimator no_std_norm
  """,
  "algo.kl": """
    target horizon init_coef estimator use_loss
  """,
  "ckpt": """
    save_steps path save_hf disable_ds max_num max_mem load_enable best_metric_key
    output_dir
  """,
  "critic": """
    num_nodes num_gpus_per_node value_clip freezing_steps save_value_network
    model_name_or_path optim lr_scheduler lr_warmup_ratio min_lr_ratio max_norm
  """,
  "critic.adam": """
    lr betas eps weight_decay
  """,
  "critic.muon": """
    lr momentum ns_steps nesterov no_nesterov
  """,
  "data": """
    disable_fast_tokenizer dataloader_num_workers max_len max_samples prompt_dataset
    prompt_probs prompt_split input_key label_key input_template apply_chat_template
    image_key max_images_per_prompt
  """,
  "ds": """
    use_universal_ckpt zero_stage deepcompile param_dtype zpg adam_offload
    attn_implementation experts_implementation use_liger_kernel grad_accum_dtype
    overlap_comm enable_sleep tensor_parallel_size packing_samples load_in_4bit
    ring_attn_size ring_attn_head_stride value_head_prefix
  """,
  "ds.lora": """
    rank alpha target_modules dropout
  """,
  "eval": """
    steps dataset split temperature n_samples_per_prompt
  """,
  "logger": """
    logging_steps tensorboard_dir
  """,
  "logger.wandb": """
    key org group project run_name
  """,
  "ref": """
    num_nodes num_gpus_per_node offload
  """,
  "reward": """
    num_nodes num_gpus_per_node normalize_enable clip_range overlong_buffer_len
    overlong_penalty_factor stop_properly_penalty_coef model_name_or_path remote_url
    offload
  """,
  "rollout": """
    max_tokens_per_gpu batch_size vllm_generate_batch_size micro_batch_size
    max_new_tokens top_p temperature n_samples_per_prompt
  """,
  "train": """
    colocate_actor_ref colocate_critic_reward colocate_all async_enable
    async_queue_size partial_rollout_enable enable_ema ema_beta dynamic_batch_enable
    max_tokens_per_gpu num_episodes max_epochs micro_batch_size batch_size seed
    full_determinism_enable agent_func_path
  """,
  "vllm": """
    num_engines tensor_parallel_size sync_backend sync_with_ray
    enable_prefix_caching enforce_eager enable_sleep gpu_memory_utilization
  """,
}
SECTIONS = Sections("OpenRLHF", _READERS, _OTHERS, flags=True)
