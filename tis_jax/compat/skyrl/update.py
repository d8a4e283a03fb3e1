"""SkyRL: its configuration as what a learner's update does."""

from collections.abc import Callable
from typing import Any

from tis_jax.compat import options
from tis_jax.compat._stage import stage
from tis_jax.compat.adapters import Anchor, native_estimator, native_loss
from tis_jax.compat.sections.skyrl import SECTIONS
from tis_jax.compat.skyrl.advantage_estimators import advantages
from tis_jax.compat.skyrl.policy_losses import TokenLoss, token_loss
from tis_jax.corrections import chain

_PEER = "SkyRL"
_DEFAULTS = {
  "update_epochs_per_batch": 1,
  "use_kl_loss": True,
  "kl_loss_coef": 0.001,
  "kl_estimator_type": "k3",
  "use_kl_in_reward": False,
  "kl_ctrl": None,
  "use_entropy_loss": False,
  "entropy_loss_coef": 0.01,
}
_KL_CTRL = {
  "type": "fixed",
  "kl_target": 0.1,
  "horizon": 10000,
}
_MODES = {
  "token_mean": "token_mean",
  "sequence_mean": "sequence_mean",
  "seq_mean_token_sum_norm": "sequence_sum_constant",
  "prompt_mean": "prompt_mean",
}


def update(
  config: options.Config = None, *, response_length: int | None = None
) -> dict[str, Any]:
  """Fields of `tis_jax.learner.Algorithm`; see `tis_jax.compat.update`.

  Not as in SkyRL: a loss sees its advantages before they are divided by the reduction,
  which clip_cov and kl_cov tell apart, and the mask after the correction, which gspo
  takes its mean over; KL and entropy are aggregated as the loss is;
  a KL to the reference is the native one, its k3 not cut at 10 nats.
  """
  corrected = SECTIONS.locate(config, "correction")
  if all("correction" in readers for readers in SECTIONS.used(config).values()):
    return {"correct": chain(stage("skyrl", corrected))}
  cfg = options.read(_PEER, SECTIONS.locate(config, "update"), _DEFAULTS)
  loss = token_loss(config)
  clip = SECTIONS.locate(config, "value_loss").get("value_clip", 0.2)
  epochs = cfg["update_epochs_per_batch"]
  entropy = 0.0
  if options.flag(_PEER, "use_entropy_loss", cfg["use_entropy_loss"]):
    entropy = options.number(_PEER, "entropy_loss_coef", cfg["entropy_loss_coef"])
  return {
    "correct": chain(stage("skyrl", corrected)) if loss.corrected else chain(),
    "loss": _native_loss(loss),
    "advantage": _native_estimator(config),
    "old_logp": "recompute",
    "baseline": "all",
    "aggregation": _aggregation(config),
    "kl": _kl(cfg),
    "critic": {"clip": clip},
    "entropy_coefficient": entropy,
    "epochs": int(options.number(_PEER, "update_epochs_per_batch", epochs, at_least=1)),
  }


def _native_loss(loss: TokenLoss) -> Callable:
  anchor: Anchor = "sampler" if loss.anchored else "old"
  takes = ("logp", f"{anchor}_logp", "advantages", "mask")
  if loss.name == "cross_entropy":
    anchor, takes = "none", ("logp", "advantages", "mask")
  return native_loss(_PEER, loss.name, loss.loss, takes, ratio_to=anchor)


def _native_estimator(config: options.Config) -> Callable:
  cfg = SECTIONS.locate(config, "advantages")
  name = cfg.get("advantage_estimator", "grpo")
  extras = {"values": "values"} if name == "gae" else {}
  return native_estimator(_PEER, name, advantages(cfg), extras)


def _aggregation(config: options.Config) -> dict[str, Any]:
  cfg = SECTIONS.locate(config, "reduction")
  kind = cfg.get("loss_reduction", "token_mean")
  if kind == "token_mean_legacy":
    raise ValueError(
      f"{_PEER}: loss_reduction 'token_mean_legacy' averages over micro-batches, which "
      "change nothing here; write 'token_mean'"
    )
  options.choice(_PEER, "loss_reduction", kind, tuple(_MODES))
  length = None
  if kind == "seq_mean_token_sum_norm":
    length = options.number(_PEER, "max_seq_len", cfg.get("max_seq_len"), above=0)
  return {"mode": _MODES[kind], "denominator": "sampled", "length": length}


def _kl(cfg: dict[str, Any]) -> dict[str, Any]:
  control = options.read(f"{_PEER} kl_ctrl", cfg["kl_ctrl"], _KL_CTRL)
  in_loss = options.flag(_PEER, "use_kl_loss", cfg["use_kl_loss"])
  in_reward = options.flag(_PEER, "use_kl_in_reward", cfg["use_kl_in_reward"])
  if in_loss and in_reward:
    raise ValueError(f"{_PEER}: use_kl_loss and use_kl_in_reward exclude each other")
  if in_reward and control["type"] != "fixed":
    raise ValueError(
      f"{_PEER}: kl_ctrl.type {control['type']!r} moves the coefficient, which a run "
      "does not; write 'fixed'"
    )
  coefficient = 0.0
  if in_loss or in_reward:
    coefficient = options.number(_PEER, "kl_loss_coef", cfg["kl_loss_coef"], at_least=0)
  return {
    "coefficient": coefficient,
    "kind": cfg["kl_estimator_type"],
    "placement": "reward" if in_reward else "loss",
  }
