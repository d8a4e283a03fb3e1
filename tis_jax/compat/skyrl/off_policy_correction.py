"""SkyRL: `off_policy_correction` and the deprecated `use_tis`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Array, Correct, masked_mean, masked_sum, prepare
from tis_jax.compat.sections.skyrl import SECTIONS
from tis_jax.corrections import Chain, chain, reject, truncate, veto
from tis_jax.numerics.ratios import ratio

_PEER = "SkyRL"
DEFAULTS = {
  "tis_ratio_type": None,
  "token_tis_ratio_clip_high": 2.0,
  "sequence_tis_ratio_clip_high": 5.0,
  "sequence_mask_metric": None,
  "geo_mask_low": 0.99,
  "geo_mask_high": 1.01,
  "product_mask_low": 0.5,
  "product_mask_high": 2.0,
  "outlier_token_is_threshold_low": None,
  "outlier_token_is_threshold_high": None,
  "token_mask_is_threshold_low": None,
  "token_mask_is_threshold_high": None,
}
DEPRECATED = {"use_tis": False, "tis_imp_ratio_cap": -1.0}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of SkyRL's `off_policy_correction` options.

  The stages run in this order, each on the mask that the one before left: the outlier
  mask drops a sequence that holds a token ratio outside its bounds; the token mask
  drops tokens outside its own (IcePop); the weight is min(rho, cap), rho the token
  ratio or the product over the sequence; the sequence mask drops sequences whose
  product or geometric mean is out of bounds. Bounds themselves pass.

  The deprecated `use_tis` with `tis_imp_ratio_cap` means a token cap. SkyRL lets that
  cap stay at its default of -1, which turns every weight into -1 and the loss upside
  down; here a cap that is not positive is an error.

  Args:
    config: the `trainer.algorithm.off_policy_correction` section, pasted; or `use_tis`
      and `tis_imp_ratio_cap`, which may stand beside a nested `off_policy_correction`.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`. The weight is None
    without `tis_ratio_type`, `[B, T]` for `token` (outside the mask too) and `[B, 1]`
    for `sequence`. With nothing switched on there are no metrics.

  Raises:
    ValueError: an unknown key, an impossible value, or one token bound without the
      other (SkyRL ignores it in silence).

  >>> fn = correction(
  ...   {"tis_ratio_type": "sequence", "sequence_mask_metric": "geometric"}
  ... )
  >>> old, sampler = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -2.0]])
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> weight, mask
  (Array([[2.7182817]], dtype=float32), Array([[False, False]], dtype=bool))
  >>> metrics["geo_sequence_mask_over_high_ratio"]
  Array(1., dtype=float32)

  Source: SkyRL, `skyrl_train/utils/off_policy_correction_utils.py` (2026-08).
  """
  cfg = check(SECTIONS.locate(config, "correction"))

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    weight, kept_BT, metrics = apply(cfg, old_logp - sampler_logp, valid_BT)
    return weight, kept_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a SkyRL config.

  Its mask is that of `correction(config)`, its weight the same on every token accepted.

  SkyRL divides by the tokens of the incoming mask: give `aggregate` that one as its
  `denominator_mask`.

  >>> correct = native({"use_tis": True, "tis_imp_ratio_cap": 2.0,
  ...                   "off_policy_correction": {"sequence_mask_metric": "geometric"}})
  >>> [stage.name for stage in correct.stages]
  ['truncate', 'reject']
  """
  cfg = check(SECTIONS.locate(config, "correction"))
  stages = []
  low, high = (cfg[f"outlier_token_is_threshold_{side}"] for side in ("low", "high"))
  if low is not None or high is not None:
    stages.append(veto(low, high))
  low, high = (cfg[f"token_mask_is_threshold_{side}"] for side in ("low", "high"))
  if low is not None:
    stages.append(reject(high, low, level="token"))
  level = cfg["tis_ratio_type"]
  if level is not None:
    stages.append(truncate(cfg[f"{level}_tis_ratio_clip_high"], level=level))
  if cfg["sequence_mask_metric"] == "geometric":
    stages.append(reject(cfg["geo_mask_high"], cfg["geo_mask_low"], level="geometric"))
  elif cfg["sequence_mask_metric"] == "product":
    stages.append(
      reject(cfg["product_mask_high"], cfg["product_mask_low"], level="sequence")
    )
  return chain(*stages)


def check(config: Mapping[str, Any] | None) -> dict[str, Any]:
  """The options, with `use_tis` translated and every value checked."""
  extra = {**DEPRECATED, "off_policy_correction": None}
  cfg = options.read(_PEER, config, DEFAULTS | extra)
  nested = cfg.pop("off_policy_correction")
  use_tis = options.flag(_PEER, "use_tis", cfg.pop("use_tis"))
  cap = cfg.pop("tis_imp_ratio_cap")
  if nested is not None:
    cfg = options.read(_PEER, nested, cfg)
  if use_tis:
    try:
      cap = options.number(_PEER, "tis_imp_ratio_cap (with use_tis)", cap, above=0)
    except ValueError as error:
      raise ValueError(
        f"{error}. SkyRL's default of -1 turns every weight into -1; its README and "
        "its scripts set tis_imp_ratio_cap to 2.0"
      ) from None
    cfg |= {"tis_ratio_type": "token", "token_tis_ratio_clip_high": cap}
  options.choice(
    _PEER, "tis_ratio_type", cfg["tis_ratio_type"], (None, "token", "sequence")
  )
  options.choice(
    _PEER,
    "sequence_mask_metric",
    cfg["sequence_mask_metric"],
    (None, "product", "geometric"),
  )
  # SkyRL reads a bound when its stage is on: a null of one that is off means nothing.
  for level in ("token", "sequence"):
    key = f"{level}_tis_ratio_clip_high"
    if cfg[key] is not None or cfg["tis_ratio_type"] == level:
      cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  for name, metric in (("geo_mask", "geometric"), ("product_mask", "product")):
    low, high = f"{name}_low", f"{name}_high"
    if cfg["sequence_mask_metric"] == metric or None not in (cfg[low], cfg[high]):
      cfg[low], cfg[high] = options.band(_PEER, low, cfg[low], high, cfg[high])
  low, high = "token_mask_is_threshold_low", "token_mask_is_threshold_high"
  if (cfg[low] is None) != (cfg[high] is None):
    raise ValueError(f"{_PEER}: {low} and {high} work together; set both or neither")
  if cfg[low] is not None:
    cfg[low], cfg[high] = options.band(_PEER, low, cfg[low], high, cfg[high])
  low, high = "outlier_token_is_threshold_low", "outlier_token_is_threshold_high"
  for key in (low, high):
    if cfg[key] is not None:
      cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  if cfg[low] is not None and cfg[high] is not None:
    options.band(_PEER, low, cfg[low], high, cfg[high])
  return cfg


def active(cfg: Mapping[str, Any]) -> bool:
  """Whether any stage is switched on."""
  return any(
    cfg[key] is not None
    for key in (
      "tis_ratio_type",
      "sequence_mask_metric",
      "outlier_token_is_threshold_low",
      "outlier_token_is_threshold_high",
      "token_mask_is_threshold_low",
    )
  )


def apply(cfg, log_ratio_BT: Array, valid_BT: Array):
  """The weight, the mask that is left, and the metrics."""
  if not active(cfg):
    return None, valid_BT, {}
  ratio_BT = ratio(log_ratio_BT)
  metrics = _ratio_metrics(ratio_BT, valid_BT)
  kept_BT = valid_BT
  low, high = (cfg[f"outlier_token_is_threshold_{side}"] for side in ("low", "high"))
  if low is not None or high is not None:
    over_B = _any_row(ratio_BT > high if high is not None else False, kept_BT)
    under_B = _any_row(ratio_BT < low if low is not None else False, kept_BT)
    kept_BT = kept_BT & ~(over_B | under_B)[:, None]
    metrics |= _row_shares("outlier_seq", over_B, under_B)
  low, high = (cfg[f"token_mask_is_threshold_{side}"] for side in ("low", "high"))
  if low is not None:
    outside_BT = (ratio_BT < low) | (ratio_BT > high)
    metrics["token_mask_ratio"] = masked_mean(outside_BT.astype(jnp.float32), kept_BT)
    kept_BT = kept_BT & ~outside_BT
  weight = None
  if cfg["tis_ratio_type"] == "token":
    cap = cfg["token_tis_ratio_clip_high"]
    weight = jnp.minimum(ratio_BT, cap)
    over_BT = (ratio_BT > cap).astype(jnp.float32)
    metrics["tis_token_clip_high_ratio"] = masked_mean(over_BT, kept_BT)
  elif cfg["tis_ratio_type"] == "sequence":
    cap = cfg["sequence_tis_ratio_clip_high"]
    product_B = ratio(masked_sum(log_ratio_BT, kept_BT, 1))
    weight = jnp.minimum(product_B, cap)[:, None]
    metrics["tis_seq_clip_high_ratio"] = (product_B > cap).mean(dtype=jnp.float32)
  if cfg["sequence_mask_metric"] is not None:
    geometric = cfg["sequence_mask_metric"] == "geometric"
    name, aggregate = ("geo", masked_mean) if geometric else ("product", masked_sum)
    row_B = ratio(aggregate(log_ratio_BT, kept_BT, 1))
    over_B, under_B = row_B > cfg[f"{name}_mask_high"], row_B < cfg[f"{name}_mask_low"]
    kept_BT = kept_BT & ~(over_B | under_B)[:, None]
    metrics |= _row_shares(f"{name}_sequence_mask", over_B, under_B)
  return weight, kept_BT, metrics


def _ratio_metrics(ratio_BT: Array, valid_BT: Array) -> dict[str, Array]:
  """SkyRL counts every masked position as a ratio of 0, in the minimum and the std."""
  zeroed_BT = jnp.where(valid_BT, ratio_BT, 0.0)
  return {
    "is_ratio_mean": masked_mean(ratio_BT, valid_BT),
    "is_ratio_std": zeroed_BT.std(ddof=1),
    "is_ratio_max": zeroed_BT.max(),
    "is_ratio_min": zeroed_BT.min(),
  }


def _any_row(hit: Array | bool, valid_BT: Array) -> Array:
  return (valid_BT & hit).any(1)


def _row_shares(name: str, over_B: Array, under_B: Array) -> dict[str, Array]:
  share = lambda x_B: x_B.mean(dtype=jnp.float32)
  return {
    f"{name}_masked_ratio": share(over_B | under_B),
    f"{name}_over_high_ratio": share(over_B),
    f"{name}_under_low_ratio": share(under_B),
  }
