"""verl as of 2025-10: `rollout_is_level`, `rollout_is_mode` and the veto."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, log, masked_mean, masked_sum, prepare
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.verl import metrics
from tis_jax.corrections import (
  Chain,
  Stage,
  chain,
  importance,
  reject,
  truncate,
  veto,
)
from tis_jax.numerics.ratios import ratio

_PEER = "verl (2025-10)"
_OWN_KEYS = (
  "rollout_is_level",
  "rollout_is_mode",
  "rollout_is_threshold_lower",
  "rollout_is_veto_threshold",
)
_DEFAULTS = {
  "rollout_is": True,
  "rollout_is_threshold": None,
  "rollout_is_threshold_lower": None,
  "rollout_is_level": "token",
  "rollout_is_mode": "truncate",
  "rollout_is_veto_threshold": None,
}


def recognises(config: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
  """Whether the config is of this generation, by its keys."""
  if config is None or not hasattr(config, "keys"):
    return False
  if any(key in config for key in _OWN_KEYS):
    return True
  return "rollout_is" in config and isinstance(config["rollout_is"], bool)


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
    config: `rollout_is_threshold` (None turns everything off; to leave it out, which
      verl reads as None, is an error), `rollout_is_level`, `rollout_is_mode`,
      `rollout_is_threshold_lower`, `rollout_is_veto_threshold`, and `rollout_is`: false
      for metrics alone.

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
  cfg = _read(config)
  correct_native = chain(*_stages(cfg), metrics="none")

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    if cfg["rollout_is_threshold"] is None:
      return None, valid_BT.astype(dtype), {}
    out = _metrics(cfg, old_logp - sampler_logp, valid_BT)
    gap = mismatch(old_logp, sampler_logp, valid_BT)
    out |= {
      f"mismatch_{name}": value
      for name, value in gap.items()
      if not name.startswith("chi2")
    }
    out = {f"mismatch/{name}": value for name, value in out.items()}
    if not cfg["rollout_is"]:
      return None, valid_BT.astype(dtype), out
    weight_BT, kept_BT, _ = correct_native(old_logp, sampler_logp, valid_BT)
    return weight_BT, kept_BT.astype(dtype), out

  return correct


def native(config: Mapping[str, Any]) -> Chain:
  """The native chain of a config of this generation."""
  cfg = _read(config)
  off = cfg["rollout_is_threshold"] is None or not cfg["rollout_is"]
  return chain(*([] if off else _stages(cfg)))


def _stages(cfg) -> list[Stage]:
  """The weight first and a token mask last, so that each sees the incoming mask."""
  high, low = cfg["rollout_is_threshold"], cfg["rollout_is_threshold_lower"]
  level, veto_low = cfg["rollout_is_level"], cfg["rollout_is_veto_threshold"]
  if high is None:
    return []
  vetoes = [] if veto_low is None else [veto(veto_low)]
  if cfg["rollout_is_mode"] == "truncate":
    return [truncate(high, level=level), *vetoes]
  return [importance(level), *vetoes, reject(high, low, level=level)]


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, config, _DEFAULTS)
  if "rollout_is_threshold" not in config:
    raise ValueError(
      f"{_PEER}: rollout_is_threshold is not set, which switches everything off in "
      "verl; set it, or set it to None to say so"
    )
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
  if cfg["rollout_is_threshold"] is None:
    return cfg
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


def _metrics(cfg, log_ratio_BT, valid_BT):
  """All of them of the raw ratio: before truncation, mask and veto."""
  low, high = cfg["rollout_is_threshold_lower"], cfg["rollout_is_threshold"]
  level = cfg["rollout_is_level"]
  mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  share = lambda x_B: x_B.mean(dtype=jnp.float32)
  if level == "token":
    row_B, raw_BT = None, ratio(log_ratio_BT)
  else:
    aggregate = masked_sum if level == "sequence" else masked_mean
    row_B = aggregate(log_ratio_BT, valid_BT, 1)
    raw_BT = jnp.broadcast_to(ratio(row_B)[:, None], valid_BT.shape)
  raw_BT = jnp.where(valid_BT, raw_BT, 0.0)
  out = metrics.weights(
    raw_BT, raw_BT, valid_BT, low=low, high=high, total_B=row_B, clip=(low, high)
  )
  if level == "geometric":  # its fractions are of tokens
    out["rollout_is_ratio_fraction_high"] = mean(raw_BT > high)
    out["rollout_is_ratio_fraction_low"] = mean(raw_BT < low)
  bad_BT = jnp.zeros_like(valid_BT)
  if cfg["rollout_is_veto_threshold"] is not None:
    bad_BT = valid_BT & (log_ratio_BT < log(cfg["rollout_is_veto_threshold"]))
  out["rollout_is_veto_fraction"] = share(bad_BT.any(1))
  out["rollout_is_catastrophic_token_fraction"] = mean(bad_BT)
  if cfg["rollout_is_mode"] != "truncate":
    outside_BT = valid_BT & ((raw_BT < low) | (raw_BT > high))
    out["rollout_is_masked_fraction"] = mean(outside_BT)
    out["rollout_is_seq_masked_fraction"] = share(outside_BT.any(1))
  return out
