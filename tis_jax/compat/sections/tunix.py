"""Where Tunix's options stand: fields of `GRPOConfig`, sections of its CLI's YAML.

Names as in its `rl/algorithm_config.py`, `rl/grpo/grpo_learner.py`,
`rl/agentic/agentic_grpo_learner.py` and `cli/base_config.yaml` at c7d8950 (2026-08-21),
and those that `GRPOConfig` has had since; see `VERSION`.
"""

from tis_jax.compat.options import Sections

_OWN = (
  "sampler_is",
  "sampler_is_threshold",
  "sampler_rs",
  "sampler_rs_min",
  "sampler_rs_max",
  "seq_logprob_error_threshold",
)
_ROOT = """
  model_config actor_model_config critic_model_config reference_model_config
  rollout_model_config tokenizer_config data_source data_directory data_module
  apply_chat_template_to_dataset dataset_name batch_size max_target_length
  num_train_epochs train_fraction num_test_batches tfds_download num_batches
  optimizer_config training_config rl_training_config ppo_config rollout_config
  rollout_engine vllm_config sglang_jax_config offload_to_cpu verl_compatible
  reward_functions data_config prompt_key training_mode chat_parser_config
  agent_class_path agent_kwargs env_class_path env_kwargs kubernetes_config
  agentic_ppo_config
"""
_GRPO = """
  algo_variant advantage_estimator policy_loss_fn reward_manager kl_clamp_value
  loss_agg_mode loss_algo num_generations num_iterations beta kl_loss_mode epsilon
  use_rollout_logps reward_num_workers reward_worker_timeout_seconds temperature
  force_on_policy_ratio log_sampler_trainer_agreement exact_token_continuity
  epsilon_high epsilon_c zero_variance_prompt_filtering num_val_generations_per_prompt
"""
_AGENTIC = """
  system_prompt max_response_length max_concurrency off_policy_steps episode_timeout
  filter_statuses overlong_filter force_compute_kl degenerate_group_masking
"""

SECTIONS = Sections(
  "Tunix",
  {"correction": {"grpo_config": _OWN, "agentic_grpo_config": _OWN}},
  {"": _ROOT, "grpo_config": _GRPO, "agentic_grpo_config": _GRPO + _AGENTIC},
)
