"""verl as of 2025-10: `rollout_is_level`, `rollout_is_mode` and the veto."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import (
  Array,
  log,
  masked_max,
  masked_mean,
  masked_min,
  masked_sum,
  prepare,
)
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.verl import metrics
from tis_jax.corrections.ratios import LOG_LIMIT, ratio

_PEER = "verl (2025-10)"
_OWN_KEYS = (
  "rollout_is_level",
  "rollout_is_mode",
  "rollout_is_threshold_lower",
  "rollout_is_veto_threshold",
)
_DEFAULTS = {
  "rollout_is": True,
  "rollout_is_threshold": 2.0,
  "rollout_is_threshold_lower": None,
  "rollout_is_level": "token",
  "rollout_is_mode": "truncate",
  "rollout_is_veto_threshold": None,
}
Correct = Callable[..., tuple[Array | None, Array, dict[str, Array]]]


def recognises(config: Mapping[str, Any]) -> bool:
  """Whether the config is of this generation, by its keys."""
  return any(key in config for key in _OWN_KEYS) or isinstance(
    config.get("rollout_is"), bool
  )


def correction(config: Mapping[str, Any]) -> Correct:
  r"""The correction of verl's options of 2025-10-27 to 2025-11-07.

  The ratio rho is taken at `rollout_is_level`: per token, the product over the
  sequence, or its geometric mean. Mode `truncate` weighs by min(rho, C). Mode `mask`
  (or `clip`, its first name) weighs by rho and drops from the mask what lies outside
  [lower, C], lower being 1/C when not given. The veto drops a sequence with a token of
  log-ratio under log(`rollout_is_veto_threshold`). Metrics are taken before all of it.

  Effective sample size and std are of weights clipped to [lower, C] first, which hides
  a collapse (at C = 2 the former cannot fall below 0.64); the native ones are not.

  Args:
    config: `rollout_is_threshold` (None turns everything off), `rollout_is_level`,
      `rollout_is_mode`, `rollout_is_threshold_lower`, `rollout_is_veto_threshold`, and
      `rollout_is`: false for metrics alone.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"rollout_is_level": "geometric", "rollout_is_mode": "clip",
  ...                  "rollout_is_threshold": 1.5})
  >>> old, sampler = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -2.0]])
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> weight, mask
  (Array([[1.6487212, 1.6487212]], dtype=float32), Array([[False, False]], dtype=bool))

  Source: verl, `trainer/ppo/mismatch_helper.py` at 4424616d7.
  """
  cfg = options.read(_PEER, config, _DEFAULTS)
  off = cfg["rollout_is_threshold"] is None
  if not off:
    cfg = _check(cfg)

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    if off:
      return None, valid_BT.astype(dtype), {}
    log_ratio_BT = jnp.where(valid_BT, old_logp - sampler_logp, 0.0)
    weight_BT, kept_BT, out = _weigh(cfg, log_ratio_BT, valid_BT)
    gap = mismatch(old_logp, sampler_logp, valid_BT)
    out |= {
      f"mismatch_{name}": value
      for name, value in gap.items()
      if not name.startswith("chi2")
    }
    out = {f"mismatch/{name}": value for name, value in out.items()}
    if not cfg["rollout_is"]:
      return None, valid_BT.astype(dtype), out
    return weight_BT, kept_BT.astype(dtype), out

  return correct


def _check(cfg: dict[str, Any]) -> dict[str, Any]:
  options.flag(_PEER, "rollout_is", cfg["rollout_is"])
  options.choice(
    _PEER,
    "rollout_is_level",
    cfg["rollout_is_level"],
    ("token", "sequence", "geometric"),
  )
  options.choice(
    _PEER, "rollout_is_mode", cfg["rollout_is_mode"], ("truncate", "mask", "clip")
  )
  high = options.number(
    _PEER, "rollout_is_threshold", cfg["rollout_is_threshold"], above=0
  )
  low = cfg["rollout_is_threshold_lower"]
  low, high = options.band(
    _PEER,
    "rollout_is_threshold_lower",
    1 / high if low is None else low,
    "rollout_is_threshold",
    high,
  )
  veto = cfg["rollout_is_veto_threshold"]
  if veto is not None:
    veto = options.number(_PEER, "rollout_is_veto_threshold", veto, above=0)
  return cfg | {
    "rollout_is_threshold": high,
    "rollout_is_threshold_lower": low,
    "rollout_is_veto_threshold": veto,
  }


def _weigh(cfg, log_ratio_BT, valid_BT):
  low, high = cfg["rollout_is_threshold_lower"], cfg["rollout_is_threshold"]
  level = cfg["rollout_is_level"]
  mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  share = lambda x_B: x_B.mean(dtype=jnp.float32)

  if level == "token":
    log_level_BT = log_ratio_BT
  else:
    row_B = (masked_sum if level == "sequence" else masked_mean)(
      log_ratio_BT, valid_BT, 1
    )
    log_level_BT = jnp.broadcast_to(row_B[:, None], valid_BT.shape)
  ratio_BT = jnp.where(valid_BT, ratio(log_level_BT), 0.0)

  out = _metrics(level, ratio_BT, log_level_BT, valid_BT, low, high)
  bad_BT = jnp.zeros_like(valid_BT)
  if cfg["rollout_is_veto_threshold"] is not None:
    bad_BT = valid_BT & (log_ratio_BT < log(cfg["rollout_is_veto_threshold"]))
  vetoed_B = bad_BT.any(1)
  out["rollout_is_veto_fraction"] = share(vetoed_B)
  out["rollout_is_catastrophic_token_fraction"] = mean(bad_BT)

  kept_BT = valid_BT & ~vetoed_B[:, None]
  if cfg["rollout_is_mode"] == "truncate":
    return jnp.minimum(ratio_BT, high), kept_BT, out
  outside_BT = valid_BT & ((ratio_BT < low) | (ratio_BT > high))
  out["rollout_is_masked_fraction"] = mean(outside_BT)
  out["rollout_is_seq_masked_fraction"] = share(outside_BT.any(1))
  return ratio_BT, kept_BT & ~outside_BT, out


def _metrics(level, ratio_BT, log_level_BT, valid_BT, low, high):
  mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  share = lambda x_B: x_B.mean(dtype=jnp.float32)
  if level == "token":
    extremes = masked_max(ratio_BT, valid_BT), masked_min(ratio_BT, valid_BT)
  else:
    row_B = log_level_BT[:, 0]
    extremes = jnp.exp(jnp.minimum(row_B.max(), LOG_LIMIT)), jnp.exp(row_B.min())
  if level == "sequence":
    fractions = share(row_B > log(high)), share(row_B < log(low))
  else:
    fractions = mean(ratio_BT > high), mean(ratio_BT < low)
  row_B = masked_mean(ratio_BT, valid_BT, 1)
  return {
    "rollout_is_mean": mean(ratio_BT),
    "rollout_is_max": extremes[0],
    "rollout_is_min": extremes[1],
    "rollout_is_ratio_fraction_high": fractions[0],
    "rollout_is_ratio_fraction_low": fractions[1],
    **metrics.spread(jnp.clip(ratio_BT, low, high), valid_BT),
    **metrics.by_sequence(row_B, row_B, low, high),
  }
