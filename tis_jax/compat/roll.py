"""ROLL: `train_infer_correction`, weights and filters at four levels."""

from typing import Any, Literal

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Array, Correct, masked_mean, prepare
from tis_jax.compat.sections.roll import SECTIONS
from tis_jax.corrections import (
  Chain,
  chain,
  reject,
  reject_probability_difference,
  truncate,
)
from tis_jax.corrections.state import Level
from tis_jax.numerics.units import unit_mean, unit_starts, unit_sum

VERSION = "8eb27cc (2026-08-19)"
_PEER = "ROLL"
used = SECTIONS.used
_LEVELS = ("token", "segment", "geometric", "sequence")
_NATIVE_LEVELS: dict[str, Level] = {
  "token": "token",
  "segment": "turn_geometric",
  "geometric": "geometric",
  "sequence": "sequence",
}
_REDUCTIONS: dict[str, Literal["token", "sum", "mean"]] = {
  "token": "token",
  "geometric": "mean",
  "sequence": "sum",
}
_DEFAULTS = {"is_weight": None, "filters": None}
_WEIGHT = {
  "enabled": False,
  "weight_type": "token",
  "upper_bound": 1.2,
  "detach": True,
}
_FILTER = {
  "enabled": False,
  "agg_type": "token",
  "ratio_enabled": True,
  "ratio_low": 0.8,
  "ratio_high": 1.2,
  "diff_enabled": False,
  "diff_low": -0.2,
  "diff_high": 0.2,
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of ROLL's `train_infer_correction` section.

  The log-ratio is taken per token, as the mean of a `segment` (a run of the mask: a
  turn), as the mean of the sequence (`geometric`) or as its sum (`sequence`), and
  exponentiated; the difference of probabilities is averaged or summed alike. The weight
  is min(ratio, `upper_bound`). Each filter accepts a ratio inside
  [`ratio_low`, `ratio_high`] and, if enabled, a difference inside its own bounds; all
  see the incoming mask, and a token must pass them all. As in ROLL, a filter does
  nothing unless it is `enabled`.

  Args:
    config: the section: `is_weight` (`enabled`, `weight_type`, `upper_bound`, `detach`)
      and `filters`, a list of (`enabled`, `agg_type`, `ratio_enabled`, `ratio_low`,
      `ratio_high`, `diff_enabled`, `diff_low`, `diff_high`).

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is None
    when not enabled.

  Raises:
    ValueError: an unknown key, an impossible value, or `detach: false`, which would
      send a gradient through the weight.

  >>> fn = correction({"is_weight": {"enabled": True, "weight_type": "segment"}})
  >>> log_ratio = jnp.log(jnp.array([[4.0, 1.0, 9.0, 1.1]]))
  >>> mask = jnp.array([[1, 1, 0, 1]])  # two segments, of ratios 2 and 1.1
  >>> fn(log_ratio, jnp.zeros((1, 4)), mask)[0].round(3)
  Array([[1.2, 1.2, 0. , 1.1]], dtype=float32)

  Source: ROLL, `utils/train_infer_corrections.py` (2026).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  weight_cfg, filters = cfg["is_weight"], cfg["filters"]

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    log_ratio_BT = jnp.where(valid_BT, old_logp - sampler_logp, 0.0)
    difference_BT = jnp.exp(old_logp) - jnp.exp(sampler_logp)
    difference_BT = jnp.where(valid_BT, difference_BT, 0.0)
    mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
    by_row = lambda x_BT: masked_mean(masked_mean(x_BT, valid_BT, 1), valid_BT.any(1))
    weight_BT, kept_BT, metrics = None, valid_BT, {}
    if weight_cfg["enabled"]:
      ratio_BT = jnp.exp(_at(weight_cfg["weight_type"], log_ratio_BT, valid_BT))
      cap = weight_cfg["upper_bound"]
      metrics["actor/is_weight_clipfrac"] = mean(ratio_BT > cap)
      weight_BT = jnp.where(valid_BT, jnp.minimum(ratio_BT, cap), 0.0)
    for rule in filters:
      level = rule["agg_type"]
      values = {
        "ratio": jnp.exp(_at(level, log_ratio_BT, valid_BT)),
        "diff": _at(level, difference_BT, valid_BT),
      }
      for kind, x_BT in values.items():
        if rule[f"{kind}_enabled"]:
          passed_BT = (x_BT >= rule[f"{kind}_low"]) & (x_BT <= rule[f"{kind}_high"])
          kept_BT = kept_BT & passed_BT
          metrics[f"actor/train_infer_{level}_{kind}_mask_mean"] = mean(passed_BT)
          metrics[f"actor/train_infer_{kind}_{level}_mean"] = by_row(x_BT)
    if filters:
      metrics["actor/train_infer_final_mask_mean"] = mean(kept_BT)
    return weight_BT, kept_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a ROLL config: the weight first, the widest filters next.

  A `segment` is the level "turn_geometric".

  Raises:
    ValueError: as `correction`; and for a difference by segment, which has no stage.

  >>> config = {"filters": [{"enabled": True, "diff_enabled": True}]}
  >>> [stage.name for stage in native(config).stages]
  ['reject', 'reject_probability_difference']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  weight_cfg = cfg["is_weight"]
  stages = []
  if weight_cfg["enabled"]:
    level = _NATIVE_LEVELS[weight_cfg["weight_type"]]
    stages = [truncate(weight_cfg["upper_bound"], level=level)]
  # A filter sees what the ones before it left of a sequence, ROLL's see all of it.
  width = {"token": 1, "segment": 2}
  for rule in sorted(cfg["filters"], key=lambda rule: -width.get(rule["agg_type"], 3)):
    level = rule["agg_type"]
    if rule["ratio_enabled"]:
      bounds = rule["ratio_high"], rule["ratio_low"]
      stages.append(reject(*bounds, level=_NATIVE_LEVELS[level]))
    if rule["diff_enabled"]:
      if level not in _REDUCTIONS:
        raise ValueError(f"{_PEER}: a difference by {level} has no native stage")
      bounds = rule["diff_high"], rule["diff_low"]
      stages.append(reject_probability_difference(*bounds, reduce=_REDUCTIONS[level]))
  return chain(*stages)


def _at(level: str, x_BT: Array, valid_BT: Array) -> Array:
  """`x`, its mean over the run of the mask or over the row, or its sum over the row."""
  if level == "token":
    return x_BT
  if level == "segment":
    return unit_mean(x_BT, valid_BT, unit_starts(valid_BT, turns=True))
  row_B1 = unit_mean(x_BT, valid_BT) if level == "geometric" else unit_sum(x_BT)
  return jnp.broadcast_to(row_B1, x_BT.shape)


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  peer = f"{_PEER} is_weight"
  weight = options.read(peer, cfg["is_weight"], _WEIGHT)
  options.flag(peer, "enabled", weight["enabled"])
  options.choice(peer, "weight_type", weight["weight_type"], _LEVELS)
  if not options.flag(peer, "detach", weight["detach"]):
    raise ValueError(f"{peer}: detach must be true; a weight carries no gradient here")
  cap = float("inf") if weight["upper_bound"] is None else weight["upper_bound"]
  weight["upper_bound"] = options.number(peer, "upper_bound", cap, above=0)
  filters = []
  for index, rule in enumerate(cfg["filters"] or ()):
    peer = f"{_PEER} filters[{index}]"
    rule = options.read(peer, rule, _FILTER)
    for key in ("enabled", "ratio_enabled", "diff_enabled"):
      options.flag(peer, key, rule[key])
    options.choice(peer, "agg_type", rule["agg_type"], _LEVELS)
    for kind, least in (("ratio", 0.0), ("diff", None)):
      keys = f"{kind}_low", f"{kind}_high"
      for key in keys:
        rule[key] = options.number(peer, key, rule[key], at_least=least)
      options.order(peer, keys[0], rule[keys[0]], keys[1], rule[keys[1]])
    if rule["enabled"]:
      filters.append(rule)
  return {"is_weight": weight, "filters": filters}
