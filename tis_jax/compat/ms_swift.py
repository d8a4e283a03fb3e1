"""ms-swift: `rollout_importance_sampling_mode` and its off-policy metrics."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, constant, masked_mean, prepare
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.sections.ms_swift import SECTIONS
from tis_jax.corrections import (
  Chain,
  chain,
  importance,
  reject,
  reject_negative_divergence,
  truncate,
  zero_outside,
)
from tis_jax.numerics.ratios import ratio

VERSION = "3602360 (2026-08-22)"
_PEER = "ms-swift"
used = SECTIONS.used
_PREFIX = "rollout_correction/"
_MODES = (None, "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_DEFAULTS = {
  "rollout_importance_sampling_mode": None,
  "rollout_importance_sampling_threshold": 2.0,
  "log_rollout_offpolicy_metrics": False,
  "off_policy_sequence_mask_delta": None,
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of ms-swift's GRPO options.

  "sequence" is the geometric mean here. With rho the token ratio, g that mean and C the
  threshold: `token_truncate` min(rho, C), `token_mask` rho where rho <= C else 0,
  `sequence_truncate` min(g, C), `sequence_mask` rho where g <= C else 0. The mask stays
  for the denominator, save for `off_policy_sequence_mask_delta` (OPSM), which takes
  sequences of negative advantage with mean(sampler_logp - logp) above it out of it.

  As in ms-swift, `chi2_seq` is of the geometric mean (verl and slime: of the product),
  and `ess` is of weights clipped to [1/C, C] first, zeroed tokens included.

  Args:
    config: `rollout_importance_sampling_mode` (None, or one of the four),
      `rollout_importance_sampling_threshold` (2.0), `log_rollout_offpolicy_metrics`,
      `off_policy_sequence_mask_delta`.

  Returns:
    `fn(old_logp, sampler_logp, mask, *, advantages=None, logp=None) -> (weight, mask,
    metrics)`; OPSM needs `advantages`, `[B]`, and compares `logp` (the current
    policy's; `old_logp` when left out). The weight is None without a mode.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"rollout_importance_sampling_mode": "sequence_truncate"})
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.1, 0.9]]))
  >>> fn(old, sampler, jnp.ones((1, 2)))[0]  # the root of 9 is over the threshold of 2
  Array([[2., 2.]], dtype=float32)

  Source: ms-swift, `rlhf_trainers/grpo_trainer.py` (2026-08).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  mode = cfg["rollout_importance_sampling_mode"]
  weigh = chain(*_weight_stages(cfg), metrics="none")
  opsm = chain(*_mask_stages(cfg), metrics="none")

  def correct(old_logp, sampler_logp, mask, *, advantages=None, logp=None):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    weight_BT, metrics = None, {}
    if mode is not None or cfg["log_rollout_offpolicy_metrics"]:
      metrics |= mismatch(old_logp, sampler_logp, valid_BT)
      mean_B = masked_mean(old_logp - sampler_logp, valid_BT, 1)
      metrics["chi2_seq"] = (ratio(mean_B) ** 2).mean() - 1
    if mode is not None:
      weight_BT, kept_BT, _ = weigh(old_logp, sampler_logp, valid_BT)
      weight_BT = jnp.where(kept_BT, weight_BT, 0.0)
      metrics |= _weight_metrics(cfg, old_logp - sampler_logp, weight_BT, valid_BT)
    current = old_logp if logp is None else constant(logp, valid_BT)
    valid_BT = opsm(current, sampler_logp, valid_BT, advantages=advantages).mask
    metrics = {f"{_PREFIX}{name}": value for name, value in metrics.items()}
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of an ms-swift config; OPSM in it compares the old policy.

  ms-swift divides by the tokens of the incoming mask, less those of OPSM: give
  `aggregate` that one as its `denominator_mask`.

  >>> config = {"rollout_importance_sampling_mode": "sequence_mask"}
  >>> [stage.name for stage in native(config).stages]
  ['reject', 'importance']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  return chain(*_weight_stages(cfg), *_mask_stages(cfg))


def _weight_stages(cfg) -> list:
  mode = cfg["rollout_importance_sampling_mode"]
  high = cfg["rollout_importance_sampling_threshold"]
  return {
    None: [],
    "token_truncate": [truncate(high)],
    "token_mask": [zero_outside(high, 0.0)],
    "sequence_truncate": [truncate(high, level="geometric")],
    "sequence_mask": [reject(high, 0.0, level="geometric"), importance("token")],
  }[mode]


def _mask_stages(cfg) -> list:
  delta = cfg["off_policy_sequence_mask_delta"]
  return [] if delta is None else [reject_negative_divergence(delta)]


def _weight_metrics(cfg, log_ratio_BT, weight_BT, valid_BT):
  high = cfg["rollout_importance_sampling_threshold"]
  clipped_BT = jnp.clip(weight_BT, 1 / high, high)
  normed_BT = clipped_BT / (masked_mean(clipped_BT, valid_BT) + 1e-8)
  square = masked_mean(normed_BT**2, valid_BT)
  metrics = {
    "is_weight_mean": masked_mean(weight_BT, valid_BT),
    "ess": 1 / jnp.maximum(square, 1e-10),
  }
  mode = cfg["rollout_importance_sampling_mode"]
  if mode.startswith("token"):
    over_BT = ratio(log_ratio_BT) > high
    metrics["clipped_frac"] = masked_mean(over_BT.astype(jnp.float32), valid_BT)
  else:
    over_B = ratio(masked_mean(log_ratio_BT, valid_BT, 1)) > high
    metrics["clipped_frac"] = over_B.mean(dtype=jnp.float32)
  return metrics


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  key = "rollout_importance_sampling_mode"
  options.choice(_PEER, key, cfg[key], _MODES)
  key = "rollout_importance_sampling_threshold"
  cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  key = "log_rollout_offpolicy_metrics"
  options.flag(_PEER, key, cfg[key])
  key = "off_policy_sequence_mask_delta"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  return cfg
