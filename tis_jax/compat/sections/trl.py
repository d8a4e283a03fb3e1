"""TRL's options: fields of `GRPOConfig`, keys of its YAML, flags of `trl grpo`.

Names as in its `trainer/grpo_config.py`, `base_config.py`, `model_config.py` and
`scripts` at f2cd577 (2026-07-24). `config` names a YAML, which holds `env` too. Of what
`trl grpo` hands to `accelerate launch`, the two of its guide are known here.
"""

from tis_jax.compat.options import Sections
from tis_jax.compat.sections.transformers import TRAINING_ARGUMENTS

_OWN = (
  "vllm_importance_sampling_correction",
  "vllm_importance_sampling_mode",
  "vllm_importance_sampling_clip_max",
  "vllm_importance_sampling_clip_min",
  "vllm_importance_sampling_cap",
  "off_policy_mask_threshold",
)
_OTHERS = """
  model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout
  cast_lm_head_to_fp32 num_generations num_generations_eval max_completion_length
  ds3_gather_for_generation shuffle_dataset pad_to_multiple_of generation_batch_size
  steps_per_generation temperature top_p top_k min_p generation_kwargs
  chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode
  vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex
  vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
  vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
  vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high
  sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg
  vespo_lambda_neg importance_sampling_level reward_weights
  multi_objective_aggregation scale_rewards loss_type mask_truncated_completions
  sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile
  entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
  entropy_coef_delta entropy_target max_tool_calling_iterations use_bias_correction_kl
  log_completions log_multimodal num_completions_to_print log_unique_prompts
  log_completions_hub_repo use_transformers_continuous_batching
  transformers_continuous_batching_config use_transformers_paged model_name_or_path
  model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout
  lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type
  use_rslora use_dora load_in_8bit load_in_4bit bnb_4bit_quant_type
  use_bnb_nested_quant bnb_4bit_quant_storage datasets streaming test_split_size
  dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming
  ignore_bias_buffers reward_model_name_or_path reward_funcs config env
  accelerate_config num_processes
"""

SECTIONS = Sections(
  "TRL",
  {"correction": {"": _OWN}},
  {"": _OTHERS + TRAINING_ARGUMENTS},
  flags=True,
  files=("config",),
)
