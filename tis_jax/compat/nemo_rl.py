"""NeMo-RL: importance-sampling correction of its loss, and the sequence error mask."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Correct,
  masked_max,
  masked_mean,
  masked_min,
  masked_sum,
  prepare,
)
from tis_jax.compat.sections.nemo_rl import SECTIONS
from tis_jax.corrections import (
  Chain,
  chain,
  clip,
  importance,
  reject,
  reject_divergence,
  zero_outside,
)

VERSION = "7ea279a (2026-08-22)"
_PEER = "NeMo-RL"
used = SECTIONS.used
_TYPES = (None, "tis", "icepop", "seq-mask-tis")
_DEFAULTS = {
  "use_importance_sampling_correction": False,
  "truncated_importance_sampling_type": None,
  "truncated_importance_sampling_ratio": None,
  "truncated_importance_sampling_ratio_min": None,
  "sequence_level_importance_ratios": False,
  "seq_logprob_error_threshold": None,
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of NeMo-RL's loss options.

  With rho the token ratio, or the product over the sequence under
  `sequence_level_importance_ratios`, and [min, max] the two truncation ratios: no type
  leaves rho as it is, `tis` holds it inside (min 0 if not given), `icepop` zeroes it
  outside, `seq-mask-tis` zeroes the sequences whose geometric mean is outside and keeps
  rho elsewhere. A ratio that overflows or is NaN counts as 0. Zeroed tokens stay in the
  denominator. `seq_logprob_error_threshold`, of the `grpo` section, takes sequences
  with mean exp|log rho| above it out of the mask.

  NeMo-RL's `policy_kl_error` averages exp(-d) + d - 1 over the sampler's tokens, which
  is no KL divergence of either direction; it is here under its name.

  Args:
    config: `use_importance_sampling_correction`, `truncated_importance_sampling_type`
      (None, tis, icepop, seq-mask-tis), `truncated_importance_sampling_ratio`,
      `truncated_importance_sampling_ratio_min`, `sequence_level_importance_ratios`,
      `seq_logprob_error_threshold`.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is None
    without `use_importance_sampling_correction`.

  Raises:
    ValueError: an unknown key, an impossible value, a type without its bounds.

  >>> fn = correction({"use_importance_sampling_correction": True,
  ...                  "truncated_importance_sampling_type": "tis",
  ...                  "truncated_importance_sampling_ratio": 2.0})
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.1, 0.4]]))
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2)))
  >>> weight, metrics["is_oob_ratio"]
  (Array([[2.  , 0.25]], dtype=float32), Array(0.5, dtype=float32))

  Source: NeMo-RL, `algorithms/loss/loss_functions.py` and `algorithms/grpo.py`
  (2026-08).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  gate = chain(*_gate_stages(cfg), metrics="none")
  weigh = chain(*_weight_stages(cfg), metrics="none")

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, incoming_BT = prepare(old_logp, sampler_logp, mask)
    valid_BT = gate(old_logp, sampler_logp, incoming_BT).mask
    metrics = _gate_metrics(cfg, old_logp - sampler_logp, incoming_BT, valid_BT)
    metrics |= _mismatch(old_logp, sampler_logp, valid_BT)
    weight_BT = None
    if cfg["use_importance_sampling_correction"]:
      weight_BT, kept_BT, _ = weigh(old_logp, sampler_logp, valid_BT)
      weight_BT = jnp.where(kept_BT, weight_BT, 0.0)
      lost_BT = _lost(cfg, old_logp - sampler_logp, valid_BT)
      weight_BT = jnp.where(lost_BT, _weight_of_lost(cfg), weight_BT)
      metrics |= _weight_metrics(cfg, old_logp - sampler_logp, weight_BT, valid_BT)
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a NeMo-RL config.

  After `seq_logprob_error_threshold`, NeMo-RL divides by the tokens that are left: give
  `aggregate` the mask of a chain of that stage alone as its `denominator_mask`.

  >>> [stage.name for stage in native({"seq_logprob_error_threshold": 2}).stages]
  ['reject_divergence']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  return chain(*_gate_stages(cfg), *_weight_stages(cfg))


def _gate_stages(cfg) -> list:
  threshold = cfg["seq_logprob_error_threshold"]
  if threshold is None:
    return []
  return [reject_divergence(threshold, kind="exp_abs", reduce="mean")]


def _weight_stages(cfg) -> list:
  if not cfg["use_importance_sampling_correction"]:
    return []
  kind = cfg["truncated_importance_sampling_type"]
  level = "sequence" if cfg["sequence_level_importance_ratios"] else "token"
  high = cfg["truncated_importance_sampling_ratio"]
  low = cfg["truncated_importance_sampling_ratio_min"]
  if kind is None:
    return [importance(level)]
  if kind == "tis":
    return [clip(high, low, level=level)]
  if kind == "icepop":
    return [zero_outside(high, low, level=level)]
  return [reject(high, low, level="geometric"), importance("token")]


def _lost(cfg, log_ratio_BT, valid_BT):
  """Where NeMo-RL's unclamped exponential is not finite, which it turns into 0."""
  if cfg["sequence_level_importance_ratios"]:
    log_ratio_BT = masked_sum(log_ratio_BT, valid_BT, 1)[:, None]
  return valid_BT & ~jnp.isfinite(jnp.exp(log_ratio_BT))


def _weight_of_lost(cfg) -> float:
  """The 0 of a lost ratio passes through the clamp of `tis`."""
  truncates = cfg["truncated_importance_sampling_type"] == "tis"
  return cfg["truncated_importance_sampling_ratio_min"] if truncates else 0.0


def _mismatch(old_logp, sampler_logp, valid_BT):
  log_ratio_BT = jnp.where(valid_BT, old_logp - sampler_logp, 0.0)
  k3 = lambda x: jnp.expm1(x) - x
  log_mixture_BT = jnp.logaddexp(old_logp, sampler_logp) - jnp.log(2.0)
  js_BT = 0.5 * (k3(old_logp - log_mixture_BT) + k3(sampler_logp - log_mixture_BT))
  return {
    "token_mult_prob_error": masked_mean(jnp.exp(jnp.abs(log_ratio_BT)), valid_BT),
    "gen_kl_error": masked_mean(k3(log_ratio_BT), valid_BT),
    "policy_kl_error": masked_mean(k3(-log_ratio_BT), valid_BT),
    "js_divergence_error": masked_mean(js_BT, valid_BT),
  }


def _gate_metrics(cfg, log_ratio_BT, incoming_BT, valid_BT):
  error_BT = jnp.exp(jnp.abs(jnp.where(incoming_BT, log_ratio_BT, 0.0)))
  error_B, filled_B = masked_mean(error_BT, incoming_BT, 1), incoming_BT.any(1)
  metrics = {
    "max_seq_mult_prob_error": masked_max(error_B, filled_B),
    "mean_seq_mult_prob_error": masked_mean(error_B, filled_B),
    "min_seq_mult_prob_error": masked_min(error_B, filled_B),
  }
  if cfg["seq_logprob_error_threshold"] is not None:
    dropped_B = filled_B & ~valid_BT.any(1)
    metrics["num_masked_seqs_by_logprob_error"] = dropped_B.sum(dtype=jnp.float32)
  return metrics


def _weight_metrics(cfg, log_ratio_BT, weight_BT, valid_BT):
  """`sampling_importance_ratio` is taken after the bounds."""
  filled_B = valid_BT.any(1)
  by_row = cfg["sequence_level_importance_ratios"]
  mean = masked_mean(weight_BT, valid_BT)
  if by_row:
    mean = masked_mean(weight_BT.max(1), filled_B)
  metrics = {"sampling_importance_ratio": mean}
  kind = cfg["truncated_importance_sampling_type"]
  if kind is None:
    return metrics
  high = cfg["truncated_importance_sampling_ratio"]
  low = cfg["truncated_importance_sampling_ratio_min"]
  if kind == "seq-mask-tis":
    log_ratio_BT = jnp.where(jnp.isfinite(log_ratio_BT), log_ratio_BT, 0.0)
    ratio = jnp.exp(masked_mean(log_ratio_BT, valid_BT, 1))
    counted = filled_B
  else:
    if by_row:
      log_ratio_BT = masked_sum(log_ratio_BT, valid_BT, 1)[:, None]
    ratio = jnp.exp(log_ratio_BT)
    ratio = jnp.broadcast_to(jnp.where(jnp.isfinite(ratio), ratio, 0.0), valid_BT.shape)
    counted = valid_BT
  outside = (ratio > high) | (ratio < low)
  return metrics | {"is_oob_ratio": masked_mean(outside.astype(jnp.float32), counted)}


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  for key in ("use_importance_sampling_correction", "sequence_level_importance_ratios"):
    options.flag(_PEER, key, cfg[key])
  key = "truncated_importance_sampling_type"
  kind = options.choice(_PEER, key, cfg[key], _TYPES)
  high, low = (
    "truncated_importance_sampling_ratio",
    "truncated_importance_sampling_ratio_min",
  )
  if kind is not None:
    if not cfg["use_importance_sampling_correction"]:
      raise ValueError(f"{_PEER}: {key} needs use_importance_sampling_correction")
    if kind == "tis" and cfg[low] is None:
      cfg[low] = 0.0
    for bound in (high, low):
      if cfg[bound] is None:
        raise ValueError(f"{_PEER}: {key} {kind!r} needs {bound}")
    cfg[high] = options.number(_PEER, high, cfg[high], above=0)
    cfg[low] = options.number(_PEER, low, cfg[low], at_least=0)
    options.order(_PEER, low, cfg[low], high, cfg[high])
  if kind == "seq-mask-tis" and cfg["sequence_level_importance_ratios"]:
    raise ValueError(
      f"{_PEER}: {key} 'seq-mask-tis' excludes sequence_level_importance_ratios"
    )
  key = "seq_logprob_error_threshold"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=1)
  return cfg
