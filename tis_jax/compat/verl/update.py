"""verl: its configuration as what a learner's update does."""

import functools
from collections.abc import Callable
from typing import Any

from tis_jax import advantages as native
from tis_jax.compat import options
from tis_jax.compat._stage import stage
from tis_jax.compat.adapters import Anchor, native_estimator, native_loss
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.compat.verl import rollout_correction_2025_10
from tis_jax.compat.verl.advantage_estimators import advantages
from tis_jax.compat.verl.policy_losses import TokenLoss, token_loss
from tis_jax.corrections import chain

_PEER = "verl"
_CORRECTION = ("correction", "correction of 2025-10")
_DEFAULTS = {
  "entropy_coeff": 0.0,
  "ppo_epochs": 1,
  "shuffle": False,
  "use_kl_loss": False,
  "kl_loss_coef": 0.001,
  "kl_loss_type": "low_var_kl",
  "use_kl_in_reward": False,
  "kl_penalty": "kl",
  "kl_ctrl": None,
}
_KL_CTRL = {
  "type": "fixed",
  "kl_coef": 0.001,
  "horizon": 10000,
  "target_kl": 0.1,
  "_target_": None,
}
_KL_KINDS = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
_MODES = {
  "token-mean": "token_mean",
  "token-sum": "token_sum",
  "seq-mean-token-sum": "sequence_sum",
  "seq-mean-token-mean": "sequence_mean",
  "seq-mean-token-sum-norm": "sequence_sum_constant",
}
_ANCHORS: dict[str, Anchor] = {"gpg": "none", "dro": "none"}
# What an estimator takes beside rewards, mask and group: the native name of verl's.
_EXTRAS = {
  "gae": {"values": "values"},
  "remax": {"reward_baselines": "greedy_rewards"},
  "optimal_token_baseline": {
    "old_logp": "logp",
    "sum_pi_squared": "sum_squared_probs",
    "rollout_is_weights": "weight",
  },
}
_EXTRAS["tir_optimal_token_baseline"] = _EXTRAS["optimal_token_baseline"]


def update(
  config: options.Config = None, *, response_length: int | None = None
) -> dict[str, Any]:
  """Fields of `tis_jax.learner.Algorithm`; see `tis_jax.compat.update`.

  Not as in verl: a KL to the reference is the native one, its k3 not cut at 10 nats;
  the critic's loss is aggregated as the policy's; `bypass_mode: true` is all that its
  bypass takes (verl at 1dda039 also wants `loss_mode: bypass_mode` and the correction a
  second time below `policy_loss`, without which it rejects nothing).
  """
  corrected = _correction_alone(config)
  if all(set(r) & set(_CORRECTION) for r in SECTIONS.used(config).values()):
    return {"correct": chain(stage(_PEER, corrected))}
  cfg = options.read(_PEER, SECTIONS.locate(config, "update"), _DEFAULTS)
  actor = SECTIONS.locate(config, "policy_loss")
  bypass = corrected.get("bypass_mode", False) is True
  if bypass or actor.get("loss_mode") == "bypass_mode":
    corrected = (corrected if bypass else actor.get("rollout_correction")) or {}
    corrected = {**corrected, "bypass_mode": True}
    actor |= {"loss_mode": "bypass_mode", "rollout_correction": corrected}
  loss = token_loss(actor)
  correct = chain(stage(_PEER, corrected))
  if loss.name == "geo_mean" and correct.weighs:
    raise ValueError(
      f"{_PEER}: loss_mode 'geo_mean' takes a geometric mean of the weights of a row, "
      "which its own trainer alone does; leave rollout_is out, or take 'vanilla'"
    )
  return {
    "correct": correct,
    "loss": native_loss(
      _PEER,
      loss.name,
      loss.loss,
      ("logp", "old_logp", "advantages", "mask"),
      ratio_to=_ANCHORS.get(loss.name, "old"),
    ),
    "advantage": _native_estimator(config),
    "old_logp": "sampler" if loss.bypass else "recompute",
    # verl rejects before it makes the advantages; in bypass mode, inside of the loss,
    # which is divided by counts from before.
    "baseline": "all" if loss.bypass else "accepted",
    "aggregation": {
      "mode": _MODES[loss.aggregation],
      "denominator": "sampled" if loss.bypass else "accepted",
      "length": _length(loss, response_length),
    },
    "kl": _kl(cfg),
    "critic": {"clip": _value_clip(config)},
    "entropy_coefficient": options.number(
      _PEER, "entropy_coeff", cfg["entropy_coeff"], at_least=0
    ),
    "epochs": int(options.number(_PEER, "ppo_epochs", cfg["ppo_epochs"], at_least=1)),
    "shuffle": options.flag(_PEER, "shuffle", cfg["shuffle"]),
  }


def _correction_alone(config: options.Config) -> dict[str, Any]:
  if rollout_correction_2025_10.recognises(config):
    return SECTIONS.locate(config, "correction of 2025-10")
  return SECTIONS.locate(config, "correction")


def _native_estimator(config: options.Config) -> Callable:
  cfg = SECTIONS.locate(config, "advantages")
  name = cfg.get("adv_estimator", "gae")
  if name == "gdpo" and cfg.get("gdpo_reward_keys"):
    keys = cfg["gdpo_reward_keys"]
    weights = cfg.get("gdpo_reward_weights") or [1.0] * len(keys)
    # By name: the run knows in which order the task's rewards stand.
    named: Any = dict(zip(keys, weights, strict=True))
    return functools.partial(native.gdpo, weights=named, singleton="raw")
  return native_estimator(_PEER, name, advantages(cfg), _EXTRAS.get(name, {}))


def _length(loss: TokenLoss, response_length: int | None) -> float | None:
  if loss.aggregation != "seq-mean-token-sum-norm":
    return None
  length = loss.length or response_length
  if length is None:
    raise ValueError(
      f"{_PEER}: seq-mean-token-sum-norm divides by the width of a response; give "
      "response_length, or loss_scale_factor"
    )
  return float(length)


def _kl(cfg: dict[str, Any]) -> dict[str, Any]:
  control = options.read(f"{_PEER} kl_ctrl", cfg["kl_ctrl"], _KL_CTRL)
  in_loss = options.flag(_PEER, "use_kl_loss", cfg["use_kl_loss"])
  in_reward = options.flag(_PEER, "use_kl_in_reward", cfg["use_kl_in_reward"])
  if in_loss and in_reward:
    raise ValueError(
      f"{_PEER}: a run has one KL to the reference, in the loss or in the reward; "
      "switch one of use_kl_loss and use_kl_in_reward off"
    )
  if in_reward and control["type"] != "fixed":
    raise ValueError(
      f"{_PEER}: kl_ctrl.type {control['type']!r} moves the coefficient, which a run "
      "does not; write 'fixed'"
    )
  coefficient = 0.0
  if in_loss:
    coefficient = options.number(_PEER, "kl_loss_coef", cfg["kl_loss_coef"], at_least=0)
  elif in_reward:
    coefficient = options.number(_PEER, "kl_coef", control["kl_coef"], at_least=0)
  kind = cfg["kl_penalty"] if in_reward else cfg["kl_loss_type"]
  plus = "+" if kind.endswith("+") else ""
  kind = kind.removesuffix("+")
  return {
    "coefficient": coefficient,
    "kind": _KL_KINDS.get(kind, kind) + plus,
    "placement": "reward" if in_reward else "loss",
  }


def _value_clip(config: options.Config) -> float:
  found = SECTIONS.locate(config, "value_loss")
  width = found.get("cliprange_value", 0.5)
  return options.number(_PEER, "cliprange_value", width, at_least=0)
