"""AReaL: `actor.rejection_sampling` and `m2_threshold`."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, log, masked_mean, masked_sum, prepare
from tis_jax.compat.sections.areal import SECTIONS
from tis_jax.corrections import (
  Chain,
  Stage,
  chain,
  clip,
  importance,
  reject,
  reject_binary_kl,
  reject_divergence,
  reject_second_moment,
  veto,
)
from tis_jax.corrections.state import Level
from tis_jax.numerics.selection import mean_at_most_mask

VERSION = "cbff54d (2026-08-22)"
_PEER = "AReaL"
used = SECTIONS.used
_DEFAULTS = {
  "use_decoupled_loss": False,
  "rejection_sampling": None,
  "m2_threshold": None,
}
_SECTION = {
  "level": "token",
  "action": "mask",
  "metric": "ratio",
  "agg": "mean",
  "upper": 5.0,
  "lower": None,
}
_METRICS = ("ratio", "kl_k1", "kl_k2", "kl_k3", "binary_kl")


def correction(config: options.Config = None) -> Correct:
  r"""The correction of AReaL's actor options: proximal over behaviour policy.

  With d = old_logp - sampler_logp, the metric is exp(d) (`ratio`), d (`kl_k1`), d^2 / 2
  (`kl_k2`), exp(-d) - 1 + d (`kl_k3`) or, for KPop (`binary_kl`), the larger of
  D(p, q) and D(q, p), D(p, q) = p log(p/q) + (1-p) log((1-p)/(1-q)), p and q the two
  probabilities of the token. At level `sequence` it is aggregated by sum, mean or max,
  of d and then exponentiated for `ratio`. `mask` takes what lies outside [lower, upper]
  out of the mask, `clamp` (for `ratio`) brings the weight of it to the bounds. The
  weight is exp(d); for `ratio` by sequence it is always the geometric mean, whatever
  the aggregation. A difference that is not finite counts as 0 in the weight and in
  `ratio`; a divergence that is not a number drops its token or sequence.

  `binary_kl` holds probabilities in [1e-8, 1 - 1e-8], and 1 - 1e-8 is 1 in fp32: as in
  AReaL, a token that either policy is certain of (probability 1 in fp32) has no
  divergence and is dropped. Its config class of this commit refuses the name, which
  its documentation, its example and its function know. `native` holds them in
  [1e-6, 1 - 1e-6], as the other peers do, and keeps a token that both are certain of.

  Without `rejection_sampling` there is no weight at all, decoupled loss or not, as in
  AReaL, where the weighting lives inside the filter. `m2_threshold` (M2PO) drops the
  largest d^2 until the mean is at most it; the filter sees what that leaves. AReaL
  divides by the tokens that the filter saw.

  Args:
    config: `rejection_sampling` (None, or a section of `level`, `action`, `metric`,
      `agg`, `upper`, `lower`), `m2_threshold`, `use_decoupled_loss` (changes nothing).

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is 0 where
    the mask is.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"rejection_sampling": {"level": "sequence", "agg": "sum"}})
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.1, 0.9]]))
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> mask, metrics["rs_filtered_fraction"]  # the product is 9
  (Array([[False, False]], dtype=bool), Array(1., dtype=float32))

  Source: AReaL, `utils/functional/functional.py` (2026-08); KPop: Ring-2.6 (2026-05).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    log_ratio_BT = old_logp - sampler_logp
    log_ratio_BT = jnp.where(jnp.isfinite(log_ratio_BT), log_ratio_BT, 0.0)
    weight_BT, accepted_BT, metrics = None, valid_BT, {}
    if cfg["m2_threshold"] is not None:
      valid_BT = mean_at_most_mask(log_ratio_BT**2, valid_BT, cfg["m2_threshold"])
      accepted_BT = valid_BT
    if cfg["rejection_sampling"] is not None:
      weight_BT, accepted_BT, changed_BT = _filter(
        cfg["rejection_sampling"], old_logp, sampler_logp, log_ratio_BT, valid_BT
      )
      weight_BT = jnp.where(accepted_BT, weight_BT, 0.0)
      metrics = {
        "rs_filtered_fraction": masked_mean(changed_BT.astype(jnp.float32), valid_BT),
        "behave_imp_weight": masked_mean(weight_BT, accepted_BT),
        "behave_approx_kl": masked_mean(log_ratio_BT, accepted_BT),
        "unclipped_behave_tokens": accepted_BT.sum(dtype=jnp.float32),
      }
    return weight_BT, accepted_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of an AReaL config.

  AReaL divides by the tokens of the incoming mask, less those of `m2_threshold`: give
  `aggregate` that one as its `denominator_mask`.

  Raises:
    ValueError: as `correction`; and for options that the native algebra has no stage
      for: `kl_k3` (of the inverse ratio), a clamp decided by another statistic than the
      weight, a lower bound on a maximum, on `kl_k2` or on `binary_kl`.

  >>> [stage.name for stage in native({"rejection_sampling": {}}).stages]
  ['importance', 'reject']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  stages: list[Stage] = []
  if cfg["m2_threshold"] is not None:
    stages.append(reject_second_moment(cfg["m2_threshold"]))
  if cfg["rejection_sampling"] is not None:
    stages += _stages(cfg["rejection_sampling"])
  return chain(*stages)


_LEVELS: dict[str, Level] = {
  "sum": "sequence",
  "mean": "geometric",
  "token": "token",
}


def _stages(section) -> list[Stage]:
  reduce = "token" if section["level"] == "token" else section["agg"]
  metric, high, low = section["metric"], section["upper"], section["lower"]
  by_ratio = metric == "ratio"
  geometric = by_ratio and section["level"] == "sequence"
  weight_level = "geometric" if geometric else "token"
  if section["action"] == "clamp":
    if _LEVELS.get(reduce) != weight_level:
      raise ValueError(f"{_PEER}: a clamp by {reduce} has no native stage")
    return [clip(high, low, level=weight_level)]
  weight = importance(weight_level)
  if metric == "kl_k3" or (metric in ("kl_k2", "binary_kl") and low > 0):
    raise ValueError(f"{_PEER}: {metric!r} with these bounds has no native stage")
  if metric == "kl_k2":
    return [weight, reject_divergence(high, kind="k2", reduce=reduce)]
  if metric == "binary_kl":
    return [weight, reject_binary_kl(high, reduce=reduce)]
  bounds = (high, low) if by_ratio else (_exp(high), _exp(low))
  if reduce != "max":
    return [weight, reject(*bounds, level=_LEVELS[reduce])]
  if bounds[1] > 0:
    raise ValueError(f"{_PEER}: a lower bound on a maximum has no native stage")
  return [weight, veto(0, bounds[0])]


def _exp(x: float) -> float:
  return float(jnp.exp(x))


def _filter(section, old_logp, sampler_logp, log_ratio_BT, valid_BT):
  """The weight, the mask, and which tokens either of them changed."""
  low, high, metric = section["lower"], section["upper"], section["metric"]
  raw_BT = old_logp - sampler_logp
  value_BT = {
    "ratio": lambda: log_ratio_BT,
    "kl_k1": lambda: raw_BT,
    "kl_k2": lambda: raw_BT * raw_BT / 2,
    "kl_k3": lambda: jnp.expm1(-raw_BT) + raw_BT,
    "binary_kl": lambda: jnp.maximum(
      _binary_kl(old_logp, sampler_logp), _binary_kl(sampler_logp, old_logp)
    ),
  }[metric]()
  weight_BT = jnp.exp(log_ratio_BT)
  if section["level"] == "sequence":
    value_BT = _AGGREGATE[section["agg"]](value_BT, valid_BT)[:, None]
    if metric == "ratio":
      weight_BT = jnp.exp(masked_mean(log_ratio_BT, valid_BT, 1))[:, None]
  if metric == "ratio":
    low, high = log(low), log(high)
  weight_BT = jnp.broadcast_to(weight_BT, valid_BT.shape)
  outside_BT = valid_BT & ~((value_BT >= low) & (value_BT <= high))
  if section["action"] == "mask":
    return weight_BT, valid_BT & ~outside_BT, outside_BT
  clamped_BT = jnp.clip(weight_BT, section["lower"], section["upper"])
  bounded_BT = jnp.where(outside_BT, clamped_BT, weight_BT)
  return bounded_BT, valid_BT, bounded_BT != weight_BT


def _binary_kl(logp, other_logp):
  """KL between "this token or another" of two policies; NaN beside a certainty."""
  p, q = (jnp.clip(jnp.exp(x), 1e-8, 1.0 - 1e-8) for x in (logp, other_logp))
  return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))


_AGGREGATE = {
  "sum": lambda x_BT, valid_BT: masked_sum(x_BT, valid_BT, 1),
  "mean": lambda x_BT, valid_BT: masked_mean(x_BT, valid_BT, 1),
  "max": lambda x_BT, valid_BT: jnp.where(
    valid_BT.any(1), jnp.where(valid_BT, x_BT, -jnp.inf).max(1), 0.0
  ),
}


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  options.flag(_PEER, "use_decoupled_loss", cfg["use_decoupled_loss"])
  if cfg["m2_threshold"] is not None:
    key = "m2_threshold"
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  if cfg["rejection_sampling"] is not None:
    cfg["rejection_sampling"] = _check_section(cfg["rejection_sampling"])
  return cfg


def _check_section(section) -> dict[str, Any]:
  peer = f"{_PEER} rejection_sampling"
  section = options.read(peer, section, _SECTION)
  options.choice(peer, "level", section["level"], ("token", "sequence"))
  options.choice(peer, "action", section["action"], ("mask", "clamp"))
  metric = options.choice(peer, "metric", section["metric"], _METRICS)
  options.choice(peer, "agg", section["agg"], ("sum", "mean", "max"))
  if section["action"] == "clamp" and metric != "ratio":
    raise ValueError(f"{peer}: action 'clamp' goes with metric 'ratio', not {metric!r}")
  least = {"ratio": 1.0, "kl_k1": None}.get(metric, 0.0)
  upper = options.number(peer, "upper", section["upper"], above=least)
  lower = section["lower"]
  if lower is None:
    lower = float("-inf") if metric == "kl_k1" else 0.0
  else:
    above = 0.0 if metric == "ratio" else None
    lower = options.number(peer, "lower", lower, above=above)
  options.order(peer, "lower", lower, "upper", upper)
  if metric in ("kl_k2", "kl_k3", "binary_kl") and section["lower"] is None:
    lower = float("-inf")
  return section | {"upper": upper, "lower": lower}
