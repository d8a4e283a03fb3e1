"""slime: the mismatch helper (`mis.py`), weights and rejection with separate bounds."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Array,
  Correct,
  log,
  masked_max,
  masked_mean,
  masked_min,
  masked_sum,
  prepare,
)
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.sections.slime import SECTIONS
from tis_jax.corrections import (
  Chain,
  Stage,
  chain,
  clip,
  importance,
  normalize,
  reject,
  truncate,
  veto,
)
from tis_jax.numerics.ratios import ratio

VERSION = "624b824 (2026-08-21)"
_PEER = "slime"
used = SECTIONS.used
_LEVELS = ("token", "sequence", "geometric")
_DEFAULTS = {
  "use_tis": False,
  "tis_mode": "truncate",
  "tis_level": "token",
  "tis_lower_bound": 0.5,
  "tis_upper_bound": 2.0,
  "tis_batch_normalize": True,
  "use_rs": False,
  "rs_level": "token",
  "rs_lower_bound": None,
  "rs_upper_bound": None,
  "rs_veto_threshold": 1e-4,
}
_MISMATCH = (
  "training_ppl",
  "training_log_ppl",
  "rollout_ppl",
  "rollout_log_ppl",
  "kl",
  "k3_kl",
  "log_ppl_diff",
  "log_ppl_abs_diff",
  "ppl_ratio",
  "chi2_token",
  "chi2_seq",
)


def correction(config: options.Config = None) -> Correct:
  r"""The correction of slime's `mis.py` options.

  With rho the ratio at `tis_level` (token, sequence product, geometric mean), the
  weight is min(rho, upper) (`truncate`), rho held inside both bounds (`clip`), or rho
  itself with the tokens outside the bounds leaving the mask (`mask`). Rejection tests
  the ratio at `rs_level` against the `rs_` bounds, which fall back to the `tis_` ones;
  the veto, part of it, drops a sequence that holds a ratio under `rs_veto_threshold`.
  A lower bound of None is 1/upper. Sums and means are of raw differences; the result is
  clamped to +-20 before exp.

  As in slime, `use_rs` without `use_tis` rejects nothing: its helper returns before it
  looks at either. And `tis_batch_normalize` at the sequence level divides by the mean
  over all rows, those without tokens counting as a weight of 0.

  Args:
    config: slime's options: `use_tis`, `tis_mode` (truncate, clip, mask), `tis_level`
      (token, sequence, geometric), `tis_lower_bound`, `tis_upper_bound`,
      `tis_batch_normalize`, `use_rs`, `rs_level`, `rs_lower_bound`, `rs_upper_bound`,
      `rs_veto_threshold`.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)` over `[B, T]` arrays.
    The weight is None without `use_tis`. slime leaves the averaging of its per-token
    metrics to the trainer; here they are means over the tokens of the incoming mask,
    perplexities means over sequences.

  Raises:
    ValueError: an unknown key, an impossible value, or `tis_batch_normalize` at the
      geometric level, which slime refuses as well.

  >>> fn = correction({"use_tis": True, "tis_batch_normalize": False})
  >>> weight, mask, metrics = fn(
  ...   jnp.array([[0.0, -1.0]]), jnp.array([[-1.0, -1.5]]), jnp.array([[1, 1]])
  ... )
  >>> weight
  Array([[2.       , 1.6487212]], dtype=float32)

  Source: slime, `examples/train_infer_mismatch_helper/mis.py` (2026-08).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    gap = mismatch(old_logp, sampler_logp, valid_BT)
    metrics = {f"mis_{name}": gap[name] for name in _MISMATCH}
    if not cfg["use_tis"]:
      return None, valid_BT.astype(dtype), metrics
    log_ratio_BT = old_logp - sampler_logp
    bounded_BT, accepted_BT, more = _weigh(cfg, log_ratio_BT, valid_BT)
    metrics |= more
    if cfg["use_rs"]:
      accepted_BT, more = _reject(cfg, log_ratio_BT, accepted_BT, valid_BT)
      metrics |= more
    weight_BT = bounded_BT
    if cfg["tis_batch_normalize"]:
      factor = _batch_mean(cfg["tis_level"], bounded_BT, valid_BT)
      weight_BT = bounded_BT / factor
      metrics["mis_batch_norm_factor"] = factor
    metrics |= {
      "mis_is_ratio_mean_final": masked_mean(weight_BT, valid_BT),
      "mis_is_ratio_min_final": masked_min(weight_BT, valid_BT),
      "mis_is_ratio_max_final": masked_max(weight_BT, valid_BT),
    }
    return weight_BT, accepted_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of a slime config: the weight and mask of `correction(config)`.

  With `tis_batch_normalize` at the sequence level the native mean leaves out the rows
  without tokens, which slime counts as 0; with none of those the two are equal.

  >>> correct = native({"use_tis": True, "use_rs": True, "rs_level": "geometric"})
  >>> [stage.name for stage in correct.stages]
  ['truncate', 'normalize', 'veto', 'reject']
  """
  return chain(*_stages(_check(SECTIONS.locate(config, "correction"))))


def _stages(cfg) -> list[Stage]:
  """Weight, then whole sequences, then tokens: each sees the incoming mask."""
  if not cfg["use_tis"]:
    return []
  low, high, level = cfg["tis_lower_bound"], cfg["tis_upper_bound"], cfg["tis_level"]
  weight, masks = [], []
  if cfg["tis_mode"] == "truncate":
    weight.append(truncate(high, level=level))
  elif cfg["tis_mode"] == "clip":
    weight.append(clip(high, low, level=level))
  else:
    weight.append(importance(level))
    masks.append((level, reject(high, low, level=level)))
  if cfg["tis_batch_normalize"]:
    weight.append(normalize(by=level))
  if cfg["use_rs"]:
    if cfg["rs_veto_threshold"] is not None:
      masks.append(("sequence", veto(cfg["rs_veto_threshold"])))
    bounds = cfg["rs_upper_bound"], cfg["rs_lower_bound"]
    masks.append((cfg["rs_level"], reject(*bounds, level=cfg["rs_level"])))
  tokens_last = sorted(masks, key=lambda item: item[0] == "token")
  return [*weight, *(stage for _, stage in tokens_last)]


def _check(found: dict[str, Any]) -> dict[str, Any]:
  for key in ("tis_clip", "tis_clip_low"):
    if key in found:
      raise ValueError(
        f"slime: {key!r} is of its own TIS, not of the helper; that is tis_mode 'clip' "
        "here, tis_lower_bound=tis_clip_low, tis_upper_bound=tis_clip, "
        "tis_batch_normalize=False ('truncate' where tis_clip_low is 0)"
      )
  cfg = options.read(_PEER, found, _DEFAULTS)
  for key in ("use_tis", "use_rs", "tis_batch_normalize"):
    options.flag(_PEER, key, cfg[key])
  options.choice(_PEER, "tis_mode", cfg["tis_mode"], ("truncate", "clip", "mask"))
  for key in ("tis_level", "rs_level"):
    options.choice(_PEER, key, cfg[key], _LEVELS)
  if cfg["use_tis"] and cfg["tis_batch_normalize"] and cfg["tis_level"] == "geometric":
    raise ValueError(
      "slime: tis_batch_normalize works at tis_level 'token' and 'sequence' only"
    )
  upper = options.number(_PEER, "tis_upper_bound", cfg["tis_upper_bound"], above=0)
  lower = 1 / upper if cfg["tis_lower_bound"] is None else cfg["tis_lower_bound"]
  lower = options.number(_PEER, "tis_lower_bound", lower, at_least=0)
  if cfg["use_tis"] and cfg["tis_mode"] != "truncate":
    options.band(_PEER, "tis_lower_bound", lower, "tis_upper_bound", upper)
  rs_upper = upper if cfg["rs_upper_bound"] is None else cfg["rs_upper_bound"]
  rs_lower = lower if cfg["rs_lower_bound"] is None else cfg["rs_lower_bound"]
  if cfg["use_rs"]:
    rs_lower, rs_upper = options.band(
      _PEER, "rs_lower_bound", rs_lower, "rs_upper_bound", rs_upper
    )
  veto = cfg["rs_veto_threshold"]
  if veto is not None:
    veto = options.number(_PEER, "rs_veto_threshold", veto, above=0)
  return cfg | {
    "tis_lower_bound": lower,
    "tis_upper_bound": upper,
    "rs_lower_bound": rs_lower,
    "rs_upper_bound": rs_upper,
    "rs_veto_threshold": veto,
  }


def _ratio(level: str, log_ratio_BT: Array, valid_BT: Array) -> Array:
  if level == "token":
    return ratio(jnp.where(valid_BT, log_ratio_BT, 0.0))
  aggregate = masked_sum if level == "sequence" else masked_mean
  row_B = ratio(aggregate(log_ratio_BT, valid_BT, 1))
  return jnp.broadcast_to(row_B[:, None], log_ratio_BT.shape)


def _weigh(cfg, log_ratio_BT, valid_BT):
  """The bounded weight, 0 outside the mask; what `mask` accepts; the metrics."""
  low, high, mode = cfg["tis_lower_bound"], cfg["tis_upper_bound"], cfg["tis_mode"]
  ratio_BT = _ratio(cfg["tis_level"], log_ratio_BT, valid_BT)
  below_BT, above_BT = ratio_BT < low, ratio_BT > high
  share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  if mode == "truncate":
    bounded_BT = jnp.minimum(ratio_BT, high)
    metrics = {"mis_tis_truncate_fraction": share(above_BT)}
  else:
    bounded_BT = jnp.clip(ratio_BT, low, high) if mode == "clip" else ratio_BT
    metrics = {
      f"mis_tis_{mode}_fraction_low": share(below_BT),
      f"mis_tis_{mode}_fraction_high": share(above_BT),
    }
  bounded_BT = jnp.where(valid_BT, bounded_BT, 0.0)
  metrics |= {
    "mis_tis_weight_before_bound": masked_mean(ratio_BT, valid_BT),
    "mis_tis_weight_after_bound": masked_mean(bounded_BT, valid_BT),
  }
  if mode == "mask":
    return bounded_BT, valid_BT & ~below_BT & ~above_BT, metrics
  return bounded_BT, valid_BT, metrics


def _batch_mean(level, bounded_BT, valid_BT):
  """What slime divides the weights by; 1 where their mean is not above 1e-8."""
  if level == "token":
    mean = masked_mean(bounded_BT, valid_BT)
  else:
    mean = masked_mean(bounded_BT, valid_BT, 1).mean()
  return jnp.where(mean > 1e-8, mean, 1.0)


def _reject(cfg, log_ratio_BT, accepted_BT, valid_BT):
  """What rejection and veto leave of `accepted_BT`, and their metrics."""
  ratio_BT = _ratio(cfg["rs_level"], log_ratio_BT, valid_BT)
  below_BT, above_BT = (
    ratio_BT < cfg["rs_lower_bound"],
    ratio_BT > cfg["rs_upper_bound"],
  )
  accepted_BT = accepted_BT & ~below_BT & ~above_BT
  share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  metrics = {
    "mis_rs_mask_fraction_low": share(below_BT),
    "mis_rs_mask_fraction_high": share(above_BT),
  }
  if cfg["rs_veto_threshold"] is None:
    return accepted_BT, metrics
  bad_BT = valid_BT & (log_ratio_BT < log(cfg["rs_veto_threshold"]))
  bad_B = bad_BT.any(1)
  return accepted_BT & ~bad_B[:, None], metrics | {
    "mis_rs_catastrophic_token_fraction": share(bad_BT),
    "mis_rs_catastrophic_seq_fraction": bad_B.mean(dtype=jnp.float32),
  }
