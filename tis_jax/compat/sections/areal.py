"""Where AReaL's options stand: `actor` of its YAML.

Names as in its `api/cli_args.py` (`PPOConfig`, `PPOActorConfig`) at cbff54d
(2026-08-22). Its examples add options of their own at the root: those are known here.
"""

from tis_jax.compat.options import Sections

_ROOT = """
  experiment_name trial_name cluster allocation_mode seed enable_offload
  total_train_epochs total_train_steps total_train_n_seqs tokenizer_path train_dataset
  valid_dataset saver evaluator stats_logger perf_tracer memory_profiler recover
  sglang vllm scheduler post_exit_hook gconfig eval_gconfig rollout ref critic teacher
  dynamic_bs
"""
_OF_EXAMPLES = """
  agent_builder_path agent_run_args async_training econfig eval_workflow export_style
  judge_engine launcher log_agent_stats max_llm_calls_per_run
  max_tokens_per_trajectory max_turns n_trajs profile reward_fn_path tir workflow
"""
_ACTOR = """
  experiment_name trial_name path attn_impl use_kernels init_from_scratch is_critic
  temperature logprobs_chunk_size mb_spec pad_to_maximum disable_dropout
  gradient_checkpointing dtype grad_reduce_dtype optimizer_dtype optimizer
  weight_update_mode enable_delta_weight_update weight_update_delta_method
  weight_update_anchor_interval fsdp archon megatron offload use_lora lora_rank
  lora_alpha target_modules peft_type enable_tree_training scheduling_spec backend
  admin_api_key log_level request_timeout setup_timeout workers_ready_timeout
  scheduling_strategy ppo_n_minibatches eps_clip eps_clip_higher c_clip reward_norm
  reward_scaling reward_bias reward_clip overlong_reward_penalty overlong_tokens
  overlong_penalty_factor mask_no_eos_with_zero discount gae_lambda gae_lambda_kwargs
  gae_timestep_unit adv_norm kl_ctl kl_estimator use_sapo_loss sapo_tau_pos
  sapo_tau_neg use_cispo_loss recompute_logprob importance_sampling_level
  prox_logp_method log_agent_stats log_agent_stats_keys max_new_tokens
"""

_READERS = {
  "correction": {"actor": ("rejection_sampling", "m2_threshold", "use_decoupled_loss")}
}
SECTIONS = Sections("AReaL", _READERS, {"": _ROOT + _OF_EXAMPLES, "actor": _ACTOR})
