"""Where SkyRL's options stand in its configuration, and which function here reads them.

Names as in SkyRL's `skyrl/train/config/config.py` at a9564572e (2026-08-21).
"""

from tis_jax.compat.options import Sections

_CORRECTION = (
  *("tis_ratio_type", "token_tis_ratio_clip_high", "sequence_tis_ratio_clip_high"),
  *("sequence_mask_metric", "geo_mask_low", "geo_mask_high"),
  *("product_mask_low", "product_mask_high"),
  *("outlier_token_is_threshold_low", "outlier_token_is_threshold_high"),
  *("token_mask_is_threshold_low", "token_mask_is_threshold_high"),
)
_DEPRECATED = ("use_tis", "tis_imp_ratio_cap")
_READERS = {
  "correction": {
    "trainer.algorithm": _DEPRECATED,
    "trainer.algorithm.off_policy_correction": _CORRECTION,
  },
  "policy_loss": {
    "trainer.algorithm": (
      *("policy_loss_type", "eps_clip_low", "eps_clip_high", "clip_ratio_c"),
      *("loss_reduction", "max_seq_len", "off_policy_correction", *_DEPRECATED),
      *("sapo", "cispo", "dppo", "kl_cov", "clip_cov"),
    )
  },
  "advantages": {
    "trainer.algorithm": (
      *("advantage_estimator", "gamma", "lambd", "grpo_norm_by_std"),
      "advantage_batch_normalize",
    )
  },
  "reduction": {"trainer.algorithm": ("loss_reduction", "max_seq_len")},
  "kl_penalty": {"trainer.algorithm": ("kl_estimator_type",)},
  "value_loss": {"trainer.algorithm": ("value_clip",)},
  "update": {
    "trainer": ("update_epochs_per_batch",),
    "trainer.algorithm": (
      *("kl_ctrl", "use_kl_in_reward", "use_kl_loss", "kl_loss_coef"),
      *("kl_estimator_type", "use_entropy_loss", "entropy_loss_coef"),
    ),
  },
}
_OTHERS = {
  "": ("data", "generator", "environment"),
  "trainer": (
    *("placement", "policy", "ref", "critic", "mtp", "fully_async", "strategy"),
    *("use_expandable_segments", "sequence_parallel_backend", "seed", "bf16"),
    *("gradient_checkpointing", "gradient_checkpointing_use_reentrant"),
    *("resume_mode", "resume_path", "log_path", "ckpt_path", "export_path"),
    *("max_ckpts_to_keep", "ckpt_interval", "hf_save_interval", "epochs"),
    *("max_training_steps", "train_batch_size", "policy_mini_batch_size"),
    "critic_mini_batch_size",
    *("micro_train_batch_size_per_gpu", "micro_forward_batch_size_per_gpu"),
    *("max_tokens_per_microbatch", "recompute_old_logprobs_per_minibatch"),
    *("update_ref_every_epoch", "remove_microbatch_padding", "eval_batch_size"),
    *("eval_before_train", "eval_interval", "max_prompt_length", "flash_attn"),
    *("disable_fast_tokenizer", "project_name", "run_name", "logger", "tags"),
    *("enable_ray_gpu_monitor", "dump_data_batch", "dump_eval_results"),
    *("print_example_interval", "num_logger_eval_samples"),
    *("num_logger_train_samples", "log_example_interval", "logprobs_chunk_size"),
    *("vocab_entropy_chunk_size", "vocab_entropy_chunk_memory_mb"),
    *("fused_lm_head_logprob", "fused_lm_head_logprob_backend"),
  ),
  "trainer.algorithm": (
    *("temperature", "value_head_prefix", "dynamic_sampling"),
    *("zero_variance_filter", "zero_variance_filter_tol"),
  ),
}
SECTIONS = Sections("SkyRL", _READERS, _OTHERS)
used = SECTIONS.used
