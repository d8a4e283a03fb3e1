"""Tunix: `sampler_is`, `sampler_rs` and the sequence error mask of its GRPO config."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Correct,
  masked_max,
  masked_mean,
  prepare,
)
from tis_jax.compat.sections.tunix import SECTIONS
from tis_jax.corrections import (
  Chain,
  chain,
  importance,
  reject,
  reject_divergence,
  reject_missing,
  truncate,
)
from tis_jax.numerics.ratios import LOG_LIMIT, ratio

VERSION = (
  "a text of it later than pull request 2270 (2026-09-17), whose commit is not known "
  "here: no branch, tag or pull request of a clone of 2026-08-23 has `sampler_rs*` or "
  "`seq_logprob_error_threshold`; c7d8950 (2026-08-21) and release 0.1.7 (2026-06-09) "
  "have `sampler_is` and `sampler_is_threshold` alone"
)
_PEER = "Tunix"
used = SECTIONS.used
_DEFAULTS = {
  "sampler_is": None,
  "sampler_is_threshold": 2.0,
  "sampler_rs": None,
  "sampler_rs_min": None,
  "sampler_rs_max": None,
  "seq_logprob_error_threshold": None,
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of Tunix's GRPO options.

  `sampler_is: token` weighs by min(rho, threshold), the log-ratio clamped to +-20.
  `sampler_rs` zeroes the weight of tokens (`token`) or of sequences by their geometric
  mean (`geometric`), of raw differences, outside [min, max]. A token whose log-prob is
  not finite has weight 0. All of that stays in the denominator;
  `seq_logprob_error_threshold` takes sequences of mean exp|log rho| above it, or with a
  log-prob that is not finite, out of the mask.

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

  Source: Tunix, `rl/common.py` and `rl/algorithm_config.py`; see `VERSION`.
  """
  cfg = _check(SECTIONS.locate(config, "correction"))

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    finite_BT = jnp.isfinite(old_logp) & jnp.isfinite(sampler_logp)
    old_logp, sampler_logp = (
      jnp.where(valid_BT & finite_BT, x, 0.0) for x in (old_logp, sampler_logp)
    )
    metrics = _agreement(old_logp, sampler_logp, valid_BT)
    if cfg["seq_logprob_error_threshold"] is not None:
      valid_BT, more = _gate(cfg, old_logp - sampler_logp, finite_BT, valid_BT)
      metrics |= more
    known_BT = valid_BT & finite_BT
    log_ratio_BT = jnp.where(known_BT, old_logp - sampler_logp, 0.0)
    geometric_B = ratio(masked_mean(log_ratio_BT, valid_BT, 1))
    metrics |= _sequence_metrics(log_ratio_BT, geometric_B, valid_BT)
    weight_BT = None
    if cfg["sampler_is"] is not None or cfg["sampler_rs"] is not None:
      weight_BT, more = _weigh(cfg, log_ratio_BT, geometric_B, known_BT, valid_BT)
      metrics |= more
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a Tunix config.

  Tunix divides by the tokens of the incoming mask, less those of
  `seq_logprob_error_threshold`: give `aggregate` that one as its `denominator_mask`.

  >>> [stage.name for stage in native({"sampler_is": "token"}).stages]
  ['truncate']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
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
  error_BT = jnp.exp(jnp.minimum(gap_BT, LOG_LIMIT))
  old_BT, sampler_BT = jnp.exp(old_logp), jnp.exp(sampler_logp)
  apart_BT = jnp.abs(old_BT - sampler_BT)
  both = lambda name, x_BT: {
    f"sampler_trainer/{name}_mean": masked_mean(x_BT, valid_BT),
    f"sampler_trainer/{name}_max": masked_max(x_BT, valid_BT),
  }
  return (
    both("logp_diff", gap_BT)
    | both("mult_prob_error", error_BT)
    | both("prob_diff", apart_BT)
    | {"sampler_trainer/probs_pearson_corr": _correlation(old_BT, sampler_BT, valid_BT)}
  )


def _correlation(x_BT, y_BT, valid_BT):
  x_BT, y_BT = (v - masked_mean(v, valid_BT) for v in (x_BT, y_BT))
  scale = jnp.sqrt(masked_mean(x_BT**2, valid_BT) * masked_mean(y_BT**2, valid_BT))
  return masked_mean(x_BT * y_BT, valid_BT) / jnp.where(scale > 0, scale, 1.0)


def _gate(cfg, log_ratio_BT, finite_BT, valid_BT):
  """The mask without the sequences that the two policies disagree on too much."""
  error_BT = jnp.exp(jnp.minimum(jnp.abs(log_ratio_BT), LOG_LIMIT))
  close_B = masked_mean(error_BT, valid_BT, 1) <= cfg["seq_logprob_error_threshold"]
  close_B &= ~(valid_BT & ~finite_BT).any(1)
  filled_B = valid_BT.any(1)
  dropped_B = (filled_B & ~close_B).astype(jnp.float32)
  return valid_BT & close_B[:, None], {
    "sampler_trainer/seq_error_masked_frac": masked_mean(dropped_B, filled_B),
    "sampler_trainer/seq_error_masked_count": dropped_B.sum(),
  }


def _sequence_metrics(log_ratio_BT, geometric_B, valid_BT):
  filled_B = valid_BT.any(1)
  k1_B = -masked_mean(log_ratio_BT, valid_BT, 1)
  return {
    "sampler_is/seq_kl_mean": masked_mean(k1_B, filled_B),
    "sampler_is/seq_geo_ratio_mean": masked_mean(geometric_B, filled_B),
    "sampler_is/seq_geo_ratio_max": masked_max(geometric_B, filled_B),
  }


def _weigh(cfg, log_ratio_BT, geometric_B, known_BT, valid_BT):
  """The weight, 0 where rejected or unknown, and its metrics."""
  share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  low, high, metrics = cfg["sampler_rs_min"], cfg["sampler_rs_max"], {}
  ratio_BT = jnp.where(known_BT, ratio(log_ratio_BT), 0.0)
  weight_BT, kept_BT = jnp.ones_like(ratio_BT), known_BT
  if cfg["sampler_rs"] == "token":
    kept_BT = known_BT & (ratio_BT >= low) & (ratio_BT <= high)
    metrics["sampler_rs/rejected_fraction"] = share(~kept_BT)
  elif cfg["sampler_rs"] == "geometric":
    inside_B = (geometric_B >= low) & (geometric_B <= high)
    kept_BT = known_BT & inside_B[:, None]
    rejected_B, filled_B = (~inside_B).astype(jnp.float32), valid_BT.any(1)
    metrics["sampler_rs/rejected_fraction"] = masked_mean(rejected_B, filled_B)
  if cfg["sampler_is"] is not None:
    cap = cfg["sampler_is_threshold"]
    cap = float("inf") if cap is None else cap
    weight_BT = jnp.minimum(ratio_BT, cap)
    above_BT = known_BT & (ratio_BT > cap)
    metrics["sampler_is/frac_clipped_at_threshold"] = share(above_BT)
  weight_BT = jnp.where(kept_BT, weight_BT, 0.0)
  return weight_BT, metrics | {
    "sampler_is/weight_mean": masked_mean(weight_BT, valid_BT),
    "sampler_is/weight_max": masked_max(weight_BT, valid_BT),
  }


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
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
    cfg[low] = options.number(_PEER, low, cfg[low], at_least=0)
    cfg[high] = options.number(_PEER, high, cfg[high], above=0)
    options.order(_PEER, low, cfg[low], high, cfg[high])
  key = "seq_logprob_error_threshold"
  if cfg[key] is not None:
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=1)
  return cfg
