"""Tunix: `sampler_is`, `sampler_rs` and the sequence error mask of its GRPO config."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Correct,
  masked_max,
  masked_mean,
  masked_min,
  prepare,
)
from tis_jax.corrections import (
  Chain,
  chain,
  importance,
  reject,
  reject_divergence,
  reject_missing,
  truncate,
)
from tis_jax.numerics.ratios import ratio

_PEER = "Tunix"
_DEFAULTS = {
  "sampler_is": None,
  "sampler_is_threshold": 2.0,
  "sampler_rs": None,
  "sampler_rs_min": None,
  "sampler_rs_max": None,
  "seq_logprob_error_threshold": None,
}


def correction(config: Mapping[str, Any] | None = None) -> Correct:
  r"""The correction of Tunix's GRPO options.

  `sampler_is: token` weighs by min(rho, threshold), the log-ratio clamped to +-20.
  `sampler_rs` zeroes the weight of tokens (`token`) or of sequences by their geometric
  mean (`geometric`) outside [min, max]. A token whose log-prob is not finite has weight
  0. All of that stays in the denominator; `seq_logprob_error_threshold` takes sequences
  of mean exp|log rho| above it, or with a log-prob that is not finite, out of the mask.

  Args:
    config: `sampler_is` (None, token), `sampler_is_threshold` (2.0; None: no cap),
      `sampler_rs` (None, token, geometric), `sampler_rs_min`, `sampler_rs_max`,
      `seq_logprob_error_threshold`.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is None
    with neither `sampler_is` nor `sampler_rs`.

  Raises:
    ValueError: an unknown key, an impossible value, `sampler_rs` without its bounds.

  >>> fn = correction({"sampler_is": "token"})
  >>> log_ratio = jnp.log(jnp.array([[1.0, 3.0, 10.0]]))
  >>> weight, mask, metrics = fn(log_ratio, jnp.zeros((1, 3)), jnp.ones((1, 3)))
  >>> weight, metrics["sampler_is/frac_clipped_at_threshold"]
  (Array([[1., 2., 2.]], dtype=float32), Array(0.6666667, dtype=float32))

  Source: Tunix, `rl/common.py` (2026).
  """
  cfg = _check(config)
  gate = chain(*_gate_stages(cfg), metrics="none")
  weigh = chain(*_weight_stages(cfg), metrics="none")

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, incoming_BT = prepare(old_logp, sampler_logp, mask)
    finite_BT = jnp.isfinite(old_logp) & jnp.isfinite(sampler_logp)
    known_BT = incoming_BT & finite_BT
    old_logp = jnp.where(known_BT, old_logp, 0.0)
    sampler_logp = jnp.where(known_BT, sampler_logp, 0.0)
    arrays = old_logp, sampler_logp
    valid_BT = gate(*arrays, incoming_BT, present=finite_BT).mask
    metrics = _agreement(*arrays, incoming_BT)
    if cfg["seq_logprob_error_threshold"] is not None:
      filled_B = incoming_BT.any(1)
      dropped_B = (filled_B & ~valid_BT.any(1)).astype(jnp.float32)
      metrics["sampler_trainer/seq_error_masked_frac"] = masked_mean(
        dropped_B, filled_B
      )
    weight_BT = None
    if cfg["sampler_is"] is not None or cfg["sampler_rs"] is not None:
      weight_BT, kept_BT, _ = weigh(*arrays, valid_BT)
      weight_BT = jnp.where(kept_BT & finite_BT, weight_BT, 0.0)
      metrics |= _weight_metrics(
        cfg, old_logp - sampler_logp, weight_BT, kept_BT & finite_BT, valid_BT
      )
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: Mapping[str, Any] | None = None) -> Chain:
  """The native chain of a Tunix config.

  Tunix divides by the tokens of the incoming mask, less those of
  `seq_logprob_error_threshold`: give `aggregate` that one as its `denominator_mask`.

  >>> [stage.name for stage in native({"sampler_is": "token"}).stages]
  ['truncate']
  """
  cfg = _check(config)
  return chain(*_gate_stages(cfg), *_weight_stages(cfg))


def _gate_stages(cfg) -> list:
  threshold = cfg["seq_logprob_error_threshold"]
  if threshold is None:
    return []
  error = reject_divergence(threshold, kind="exp_abs", reduce="mean")
  return [error, reject_missing("sequence")]


def _weight_stages(cfg) -> list:
  stages = []
  if cfg["sampler_rs"] is not None:
    bounds = cfg["sampler_rs_max"], cfg["sampler_rs_min"]
    stages.append(reject(*bounds, level=cfg["sampler_rs"]))
  if cfg["sampler_is"] is not None:
    cap = cfg["sampler_is_threshold"]
    stages.append(importance("token") if cap is None else truncate(cap))
  return stages


def _agreement(old_logp, sampler_logp, valid_BT):
  gap_BT = jnp.abs(old_logp - sampler_logp)
  old_BT, sampler_BT = jnp.exp(old_logp), jnp.exp(sampler_logp)
  return {
    "sampler_trainer/logp_diff_mean": masked_mean(gap_BT, valid_BT),
    "sampler_trainer/logp_diff_max": masked_max(gap_BT, valid_BT),
    "sampler_trainer/prob_diff_mean": masked_mean(
      jnp.abs(old_BT - sampler_BT), valid_BT
    ),
    "sampler_trainer/prob_diff_max": masked_max(jnp.abs(old_BT - sampler_BT), valid_BT),
    "sampler_trainer/probs_pearson_corr": _correlation(old_BT, sampler_BT, valid_BT),
  }


def _correlation(x_BT, y_BT, valid_BT):
  x_BT, y_BT = (v - masked_mean(v, valid_BT) for v in (x_BT, y_BT))
  scale = jnp.sqrt(masked_mean(x_BT**2, valid_BT) * masked_mean(y_BT**2, valid_BT))
  return masked_mean(x_BT * y_BT, valid_BT) / jnp.where(scale > 0, scale, 1.0)


def _weight_metrics(cfg, log_ratio_BT, weight_BT, kept_BT, valid_BT):
  share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  metrics = {
    "sampler_is/weight_mean": masked_mean(weight_BT, valid_BT),
    "sampler_is/weight_max": masked_max(weight_BT, valid_BT),
    "sampler_is/weight_min": masked_min(weight_BT, valid_BT),
  }
  if cfg["sampler_is"] is not None:
    cap = cfg["sampler_is_threshold"]
    cap = float("inf") if cap is None else cap
    metrics["sampler_is/frac_clipped_at_threshold"] = share(ratio(log_ratio_BT) > cap)
  if cfg["sampler_rs"] == "token":
    metrics["sampler_rs/rejected_fraction"] = share(~kept_BT)
  elif cfg["sampler_rs"] == "geometric":
    filled_B = valid_BT.any(1)
    rejected_B = (filled_B & ~kept_BT.any(1)).astype(jnp.float32)
    metrics["sampler_rs/rejected_fraction"] = masked_mean(rejected_B, filled_B)
  return metrics


def _check(config) -> dict[str, Any]:
  cfg = options.read(_PEER, config, _DEFAULTS)
  options.choice(_PEER, "sampler_is", cfg["sampler_is"], (None, "token"))
  options.choice(_PEER, "sampler_rs", cfg["sampler_rs"], (None, "token", "geometric"))
  key = "sampler_is_threshold"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  low, high = "sampler_rs_min", "sampler_rs_max"
  if (cfg[low] is None) != (cfg[high] is None):
    raise ValueError(f"{_PEER}: {low} and {high} work together; set both or neither")
  if cfg["sampler_rs"] is not None and cfg[low] is None:
    raise ValueError(f"{_PEER}: sampler_rs needs {low} and {high}")
  if cfg[low] is not None:
    cfg[low], cfg[high] = options.band(_PEER, low, cfg[low], high, cfg[high])
  key = "seq_logprob_error_threshold"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=1)
  return cfg
