"""TRL: the vLLM importance-sampling correction of `GRPOConfig`, and OPSM."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Correct,
  constant,
  masked_max,
  masked_mean,
  masked_min,
  prepare,
)
from tis_jax.compat.sections.trl import SECTIONS
from tis_jax.corrections import (
  Chain,
  chain,
  clip,
  reject_negative_divergence,
  zero_outside,
)

VERSION = "f2cd577 (2026-07-24)"
_PEER = "TRL"
used = SECTIONS.used
_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_DEFAULTS = {
  "vllm_importance_sampling_correction": True,
  "vllm_importance_sampling_mode": "sequence_mask",
  "vllm_importance_sampling_clip_max": 3.0,
  "vllm_importance_sampling_clip_min": None,
  "vllm_importance_sampling_cap": None,
  "off_policy_mask_threshold": None,
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of TRL's `GRPOConfig`.

  With rho the token ratio, or the product over the sequence in a `sequence_` mode, the
  weight is rho held inside [min, max] (`_truncate`), or rho inside and 0 outside
  (`_mask`). `off_policy_mask_threshold` (OPSM) gives weight 0 to a sequence of negative
  advantage whose mean of `sampler_logp - logp` is above it. TRL's masks zero the loss:
  the mask comes back as it was, for the denominator.

  Args:
    config: `vllm_importance_sampling_correction` (on), `_mode` (sequence_mask),
      `_clip_max` (3.0), `_clip_min` (None), `vllm_importance_sampling_cap` (the old
      name of `_clip_max`), `off_policy_mask_threshold`.

  Returns:
    `fn(old_logp, sampler_logp, mask, *, advantages=None, logp=None) -> (weight, mask,
    metrics)`; OPSM needs `advantages`, `[B]`, and compares `logp` (the current
    policy's; `old_logp` when left out). The weight is None with both off.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"vllm_importance_sampling_mode": "token_mask"})
  >>> old, sampler = jnp.log(jnp.array([[0.4, 0.8]])), jnp.log(jnp.array([[0.5, 0.2]]))
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> weight.round(3), mask
  (Array([[0.8, 0. ]], dtype=float32), Array([[ True,  True]], dtype=bool))

  Source: TRL, `trainer/grpo_trainer.py` (2026-07).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  weigh = chain(*_weight_stages(cfg), metrics="none")
  threshold = cfg["off_policy_mask_threshold"]
  by_row = cfg["vllm_importance_sampling_mode"].startswith("sequence")

  def correct(old_logp, sampler_logp, mask, *, advantages=None, logp=None):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    gap_BT = jnp.abs(old_logp - sampler_logp)
    metrics = {
      "sampling/sampling_logp_difference/mean": masked_mean(gap_BT, valid_BT),
      "sampling/sampling_logp_difference/max": masked_max(gap_BT, valid_BT),
    }
    weight_BT = None
    if cfg["vllm_importance_sampling_correction"]:
      weight_BT = weigh(old_logp, sampler_logp, valid_BT).weight
      # TRL takes these after the bounds, over rows in the sequence modes.
      counted = (weight_BT.max(1), valid_BT.any(1)) if by_row else (weight_BT, valid_BT)
      for name, reduce in _REDUCERS.items():
        metrics[f"sampling/importance_sampling_ratio/{name}"] = reduce(*counted)
    if threshold is not None:
      opsm = chain(reject_negative_divergence(threshold), metrics="none")
      current = old_logp if logp is None else constant(logp, valid_BT)
      kept_BT = opsm(current, sampler_logp, valid_BT, advantages=advantages).mask
      weight_BT = jnp.where(kept_BT, 1.0 if weight_BT is None else weight_BT, 0.0)
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a TRL config; OPSM in it compares the old policy.

  TRL divides by the tokens of the incoming mask: give `aggregate` that one as its
  `denominator_mask`.

  >>> [stage.name for stage in native().stages]
  ['zero_outside']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  stages = _weight_stages(cfg)
  if cfg["off_policy_mask_threshold"] is not None:
    stages.append(reject_negative_divergence(cfg["off_policy_mask_threshold"]))
  return chain(*stages)


_REDUCERS = {"min": masked_min, "mean": masked_mean, "max": masked_max}


def _weight_stages(cfg) -> list:
  if not cfg["vllm_importance_sampling_correction"]:
    return []
  level, _, mode = cfg["vllm_importance_sampling_mode"].partition("_")
  bound = clip if mode == "truncate" else zero_outside
  bounds = (cfg[f"vllm_importance_sampling_clip_{side}"] for side in ("max", "min"))
  return [bound(*bounds, level=level)]


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  key = "vllm_importance_sampling_correction"
  options.flag(_PEER, key, cfg[key])
  key = "vllm_importance_sampling_mode"
  options.choice(_PEER, key, cfg[key], _MODES)
  high, low = (f"vllm_importance_sampling_clip_{side}" for side in ("max", "min"))
  cap = cfg.pop("vllm_importance_sampling_cap")
  if cap is not None:
    cfg[high] = options.number(_PEER, "vllm_importance_sampling_cap", cap, above=0)
  cfg[high] = float("inf") if cfg[high] is None else cfg[high]
  cfg[high] = options.number(_PEER, high, cfg[high], above=0)
  cfg[low] = options.number(_PEER, low, cfg[low] or 0, at_least=0)
  options.order(_PEER, low, cfg[low], high, cfg[high])
  key = "off_policy_mask_threshold"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  return cfg
