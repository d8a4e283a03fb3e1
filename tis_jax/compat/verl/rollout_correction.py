"""verl: `algorithm.rollout_correction`, weights and the eleven rejection statistics."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Correct,
  log,
  masked_mean,
  masked_sum,
  prepare,
)
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.compat.verl import metrics, rollout_correction_2025_10
from tis_jax.corrections import (
  Chain,
  Stage,
  chain,
  normalize,
  reject,
  reject_divergence,
  truncate,
  zero_outside,
)
from tis_jax.corrections.divergences import Reduce
from tis_jax.corrections.state import Level
from tis_jax.numerics.ratios import DIVERGENCES, clamp_log, ratio

_PEER = "verl"
_PREFIX = "rollout_corr/"
_STATISTICS = (
  *("token_k1", "token_k2", "token_k3"),
  *("seq_sum_k1", "seq_sum_k2", "seq_sum_k3"),
  *("seq_mean_k1", "seq_mean_k2", "seq_mean_k3"),
  *("seq_max_k2", "seq_max_k3"),
)
_LEVELS: dict[str, Level] = {
  "token": "token",
  "seq_sum": "sequence",
  "seq_mean": "geometric",
}
_REDUCTIONS: dict[str, Reduce] = {
  "token": "token",
  "seq_sum": "sum",
  "seq_mean": "mean",
  "seq_max": "max",
}
_REMOVED = {"token": "token_k1", "sequence": "seq_sum_k1", "geometric": "seq_mean_k1"}
DEFAULTS = {
  "rollout_is": None,
  "rollout_is_threshold": 2.0,
  "rollout_is_batch_normalize": False,
  "rollout_rs": None,
  "rollout_rs_threshold": None,
  "bypass_mode": False,
  "loss_type": "ppo_clip",
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of verl's rollout-correction options, both generations of them.

  With l = old_logp - sampler_logp, rho = exp(clip(l, -20, 20)) per token or
  exp(clip(sum l, -20, 20)) per sequence, the weight is min(rho, C), or for an IcePop
  threshold `"lo_hi"` rho inside [lo, hi] and 0 outside. Rejection accepts what passes
  every option of `rollout_rs`: token_k1..k3, seq_sum_k1..k3, seq_mean_k1..k3,
  seq_max_k2..k3, of log-ratios clipped to +-20 token by token, before any sum. Weights,
  statistics and metrics all see the incoming mask.

  Where verl is wrong, so is this: the k1 statistics are -log rho, so that `token_k1`
  with `"0.6_1.4"` accepts rho in [1/1.4, 1/0.6]; rows without tokens count in the
  sequence metrics. The native chain is right in both.

  A config with `rollout_is_level`, `rollout_is_mode`, `rollout_is_threshold_lower` or
  `rollout_is_veto_threshold`, or whose `rollout_is` is a bool, is of the generation of
  2025-10 (levels token, sequence, geometric; modes truncate and mask, of which `clip`
  is a synonym) and reports verl's `mismatch/` metrics.

  Args:
    config: the `rollout_correction` section, pasted, or all of verl's configuration,
      or its command-line overrides.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)` over `[B, T]` arrays;
    the mask in the dtype it came in, metrics as scalars. The weight is None where none
    applies: no `rollout_is`, or `bypass_mode` with `ppo_clip`, where verl only logs it
    because the loss divides by the sampler already.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"rollout_is": "token", "rollout_rs": "seq_mean_k1",
  ...                  "rollout_rs_threshold": "0.5_2.0"})
  >>> old, sampler = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -2.0]])
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> weight, mask
  (Array([[2., 1.]], dtype=float32), Array([[ True,  True]], dtype=bool))
  >>> metrics["rollout_corr/kl"]
  Array(-0.5, dtype=float32)

  Source: verl, `trainer/ppo/rollout_corr_helper.py` at 1dda039b9 (2026-08-22) and
  `trainer/ppo/mismatch_helper.py` at 4424616d7 (2025-10-28).
  """
  if rollout_correction_2025_10.recognises(config):
    return rollout_correction_2025_10.correction(config)
  cfg = check(_PEER, SECTIONS.locate(config, "correction"))

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    log_ratio_BT = jnp.where(valid_BT, old_logp - sampler_logp, 0.0)
    weight_BT, kept_BT, out = None, valid_BT, {}
    if cfg["rollout_is"] is not None:
      weight_BT, out = _weigh(cfg, log_ratio_BT, valid_BT)
    for name in cfg["rollout_rs"]:
      passed_BT, part = _reject(cfg, name, log_ratio_BT, valid_BT)
      kept_BT = kept_BT & passed_BT
      out |= {f"rollout_rs_{name}_{key}": value for key, value in part.items()}
    if cfg["rollout_rs"]:
      out |= metrics.rejections(kept_BT, valid_BT)
    out |= mismatch(old_logp, sampler_logp, valid_BT)
    out = {f"{_PREFIX}{name}": value for name, value in out.items()}
    return None if _logs_only(cfg) else weight_BT, kept_BT.astype(dtype), out

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a verl config, of either generation.

  Weights come first and token masks last, so that every stage sees the incoming mask,
  as in verl. With the native chain come the native metrics.

  Args:
    config: as for `correction`.

  Returns:
    A `Chain` that gives the weight and the mask of `correction(config)`.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> correct = native({"rollout_rs": "token_k1", "rollout_rs_threshold": "0.6_1.4"})
  >>> old, sampler = jnp.log(jnp.array([[0.65, 1.5]])), jnp.zeros((1, 2))
  >>> correct(old, sampler, jnp.ones((1, 2))).mask.tolist()  # of [1/1.4, 1/0.6]
  [[False, True]]
  """
  if rollout_correction_2025_10.recognises(config):
    return rollout_correction_2025_10.native(config)
  cfg = check(_PEER, SECTIONS.locate(config, "correction"))
  stages = [] if _logs_only(cfg) else _weight_stages(cfg)
  by_row_first = sorted(
    cfg["rollout_rs"].items(), key=lambda item: item[0].startswith("token")
  )
  return chain(*stages, *(_rejection_stage(n, *bounds) for n, bounds in by_row_first))


def _logs_only(cfg) -> bool:
  """In this mode verl computes the weights for their metrics."""
  return cfg["bypass_mode"] and cfg["loss_type"] == "ppo_clip"


def _weight_stages(cfg) -> list[Stage]:
  if cfg["rollout_is"] is None:
    return []
  low, high = cfg["rollout_is_threshold"]
  level = cfg["rollout_is"]
  if low is None:
    stages = [truncate(high, level=level)]
  else:
    stages = [zero_outside(high, low, level=level)]
  if cfg["rollout_is_batch_normalize"]:
    stages.append(normalize(by=level))
  return stages


def _rejection_stage(name: str, low: float, high: float) -> Stage:
  """verl's k1 is -log rho, so its bounds on "the ratio" are bounds on 1 / rho."""
  scope, _, kind = name.rpartition("_")
  if kind == "k1":
    return reject(1 / low, 1 / high, level=_LEVELS[scope])
  return reject_divergence(high, kind=kind, reduce=_REDUCTIONS[scope])


def check(peer: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
  """The options with their thresholds parsed.

  `rollout_is_threshold` becomes a pair (low or None, high), `rollout_rs` a dict from
  statistic to its bounds.
  """
  cfg = options.read(peer, config, DEFAULTS)
  options.choice(peer, "rollout_is", cfg["rollout_is"], (None, "token", "sequence"))
  options.flag(peer, "rollout_is_batch_normalize", cfg["rollout_is_batch_normalize"])
  options.flag(peer, "bypass_mode", cfg["bypass_mode"])
  options.choice(peer, "loss_type", cfg["loss_type"], ("ppo_clip", "reinforce"))
  threshold = cfg["rollout_is_threshold"]
  if threshold is None:  # verl: no threshold, no weights
    cfg["rollout_is"] = None
  elif isinstance(threshold, str) and "_" in threshold:
    cfg["rollout_is_threshold"] = _range(peer, "rollout_is_threshold", threshold)
  else:
    high = options.number(peer, "rollout_is_threshold", threshold, above=0)
    cfg["rollout_is_threshold"] = (None, high)
  cfg["rollout_rs"] = _rejections(
    peer, cfg["rollout_rs"], cfg.pop("rollout_rs_threshold")
  )
  return cfg


def _range(peer: str, key: str, text: str) -> tuple[float, float]:
  low, _, high = text.partition("_")
  return options.band(peer, f"{key} low", low, f"{key} high", high)


def _rejections(peer, names, thresholds) -> dict[str, tuple[float, float]]:
  """From `"token_k1,seq_max_k3"` and `"0.5_2.0,3.0"` to bounds of each statistic."""
  if names is None:
    return {}
  if not isinstance(names, str):
    raise ValueError(f"{peer}: rollout_rs must be text; got {names!r}")
  names = list(dict.fromkeys(filter(None, map(str.strip, names.split(",")))))
  if not names:
    raise ValueError(f"{peer}: rollout_rs names no statistic; write null for none")
  for name in names:
    if name in _REMOVED:
      raise ValueError(
        f"{peer}: rollout_rs {name!r} was removed; write {_REMOVED[name]!r}"
      )
    options.choice(peer, "rollout_rs", name, _STATISTICS)
  if thresholds is None:
    raise ValueError(f"{peer}: rollout_rs {names} needs rollout_rs_threshold")
  if not isinstance(thresholds, str):
    thresholds = str(options.number(peer, "rollout_rs_threshold", thresholds))
  specs = [spec.strip() for spec in thresholds.split(",") if spec.strip()]
  if len(specs) not in {1, len(names)}:
    raise ValueError(
      f"{peer}: rollout_rs_threshold must hold 1 or {len(names)} bounds, one for each "
      f"of {names}; got {thresholds!r}"
    )
  specs = specs * len(names) if len(specs) == 1 else specs
  return {
    name: _bounds(peer, name, spec) for name, spec in zip(names, specs, strict=True)
  }


def _bounds(peer: str, name: str, spec: str) -> tuple[float, float]:
  """verl's two numbers for k1, which it means as ratios; (0, upper) for k2 and k3."""
  key = f"rollout_rs_threshold of {name}"
  if name.endswith("k1"):
    if "_" in spec:
      return _range(peer, key, spec)
    high = options.number(peer, key, spec, above=0)
    return options.band(peer, f"{key} low", 1 / high, f"{key} high", high)
  if "_" in spec:
    raise ValueError(f"{peer}: {key} takes one upper bound, not a range; got {spec!r}")
  return 0.0, options.number(peer, key, spec, above=0)


def _weigh(cfg, log_ratio_BT, valid_BT):
  """The weight, and its metrics, which verl takes before it normalises.

  verl clamps what it exponentiates: a token's log-ratio, or the sum of raw ones.
  """
  low, high = cfg["rollout_is_threshold"]
  total_B = None
  if cfg["rollout_is"] == "sequence":
    total_B = masked_sum(log_ratio_BT, valid_BT, 1)
    raw_BT = jnp.broadcast_to(ratio(total_B)[:, None], valid_BT.shape)
  else:
    raw_BT = ratio(log_ratio_BT)
  raw_BT = jnp.where(valid_BT, raw_BT, 0.0)
  outside_BT = jnp.zeros_like(valid_BT)
  if low is None:
    weight_BT = jnp.minimum(raw_BT, high)
  else:
    outside_BT = (raw_BT < low) | (raw_BT > high)
    weight_BT = jnp.where(outside_BT, 0.0, raw_BT)
  out = metrics.weights(
    weight_BT,
    raw_BT,
    valid_BT,
    low=1 / high if low is None else low,
    high=high,
    total_B=total_B,
    clip=(0.0, high),
  )
  if low is not None:
    out["rollout_is_oob_ratio"] = masked_mean(outside_BT.astype(jnp.float32), valid_BT)
  if cfg["rollout_is_batch_normalize"]:
    if total_B is None:
      mean = masked_mean(weight_BT, valid_BT)
    else:
      mean = masked_mean(masked_mean(weight_BT, valid_BT, 1), valid_BT.any(1))
    factor = jnp.where(mean > 1e-8, mean, 1.0)
    weight_BT = weight_BT / factor
    out["rollout_is_batch_norm_factor"] = factor
  return weight_BT, out


def _reject(cfg, name, log_ratio_BT, valid_BT):
  """What one option of `rollout_rs` accepts, and its metrics."""
  low, high = cfg["rollout_rs"][name]
  two_sided = name.endswith("k1")
  low, high = (log(low), log(high)) if two_sided else (0.0, high)
  statistic, by_row = _statistic(name, log_ratio_BT, valid_BT)
  passed = statistic <= high
  if two_sided:
    passed &= statistic >= low
  passed_BT = valid_BT & (passed[:, None] if by_row else passed)
  return passed_BT, metrics.rejection(
    statistic, passed_BT, valid_BT, low, high, by_row=by_row, two_sided=two_sided
  )


def _statistic(name, log_ratio_BT, valid_BT):
  """The statistic `[B, T]` (`[B]` for a `seq_` option), and whether it is by row.

  verl clamps every token before it sums, unlike for the weights.
  """
  token_BT = DIVERGENCES[name[-2:]](clamp_log(log_ratio_BT))
  if name.startswith("token"):
    return token_BT, False
  if name.startswith("seq_sum"):
    return masked_sum(token_BT, valid_BT, 1), True
  if name.startswith("seq_mean"):
    return masked_mean(token_BT, valid_BT, 1), True
  return jnp.where(valid_BT, token_BT, 0.0).max(1), True
