"""Where prime-rl's options stand: `trainer.loss` of its TOML.

Names as in its `configs/rl.py` and `configs/trainer.py` at 559b447 (2026-08-21), and in
`trainer.loss` those of the losses of 2026-09 too. `import_path` and `kwargs`, of
`custom`, are passed over.
"""

from tis_jax.compat.options import Sections

_LOSS = (
  *("type", "adv_tau", "kl_tau", "eps", "max_importance_ratio", "score_centering"),
  *("ratio_low", "ratio_high"),
  *("dppo_mask_low", "dppo_mask_high", "ipo_threshold"),
)
_ROOT = """
  orchestrator inference env_vars run output_dir clean log ckpt resume monitors model
  tokenizer max_steps seq_len weight_broadcast rollout_transport deployment slurm
  dry_run
"""
_TRAINER = """
  model tokenizer data optim scheduler ckpt resume weight_broadcast rollout_transport
  log monitors output_dir matmul_precision max_steps enable_router_replay
  memory_profiler_path gc trace_path dist_timeout_seconds heartbeat metrics_server
  enable_token_export env_vars
"""

SECTIONS = Sections(
  "prime-rl",
  {"correction": {"trainer.loss": _LOSS}, "policy_loss": {"trainer.loss": _LOSS}},
  {"": _ROOT, "trainer": _TRAINER, "trainer.loss": "import_path kwargs"},
  flags=True,
)
