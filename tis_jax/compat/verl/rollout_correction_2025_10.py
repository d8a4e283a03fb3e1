"""verl as of 2025-10: `rollout_is_level`, `rollout_is_mode` and the veto."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, log, masked_mean, masked_sum, prepare
from tis_jax.compat.mismatch import mismatch
from tis_jax.compat.sections.verl import SECTIONS
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
  "rollout_is": False,
  "rollout_is_threshold": None,
  "rollout_is_threshold_lower": None,
  "rollout_is_level": "token",
  "rollout_is_mode": "truncate",
  "rollout_is_veto_threshold": None,
}


def recognises(config: options.Config) -> bool:
  """Whether the config is of this generation, by its keys and where they stand."""
  for path, value in options.leaves(options.parse(_PEER, config)):
    name = path[-1]
    if path not in ((name,), ("algorithm", name)):
      continue
    if name in _OWN_KEYS or (name == "rollout_is" and isinstance(value, bool)):
      return True
    if path == ("algorithm", "rollout_is_threshold"):
      return True
  return False


def correction(config: options.Config) -> Correct:
  r"""The correction of verl's options of 2025-10-27 to 2025-11-07.

  The ratio rho is taken at `rollout_is_level`: per token, the product over the
  sequence, or its geometric mean. Mode `truncate` weighs by min(rho, C). Mode `mask`
  (or `clip`, its first name) weighs by rho and drops from the mask what lies outside
  [lower, C], lower being 1/C when not given. The veto drops a sequence with a token of
  log-ratio under log(`rollout_is_veto_threshold`). Metrics are taken before all of it.

  `rollout_is` is false by default, and then no weight is applied; what the mode or the
  veto rejects leaves the mask all the same, as in verl's trainer, which overwrites the
  mask before it asks. Without a threshold nothing happens, not even the veto.

  Effective sample size and std are of weights clipped to [lower, C] first, which hides
  a collapse (at C = 2 the former cannot fall below 0.64); the native ones are not.

  Args:
    config: `rollout_is_threshold` (None turns everything off; to leave it out, which
      verl reads as None, is an error), `rollout_is_level`, `rollout_is_mode`,
      `rollout_is_threshold_lower`, `rollout_is_veto_threshold`, and `rollout_is`: true
      to apply the weight.

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is None
    unless `rollout_is` is true.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"rollout_is_level": "geometric", "rollout_is_mode": "clip",
  ...                  "rollout_is_threshold": 1.5, "rollout_is": True})
  >>> old, sampler = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -2.0]])
  >>> weight, mask, metrics = fn(old, sampler, jnp.ones((1, 2), bool))
  >>> weight, mask
  (Array([[1.6487212, 1.6487212]], dtype=float32), Array([[False, False]], dtype=bool))

  Source: verl, `trainer/ppo/mismatch_helper.py`, `trainer/ppo/ray_trainer.py` and
  `trainer/config/algorithm.py` at 4424616d7.
  """
  cfg = _read(config)

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    if cfg["rollout_is_threshold"] is None:
      return None, valid_BT.astype(dtype), {}
    log_ratio_BT = old_logp - sampler_logp
    weight_BT, kept_BT, out = _apply(cfg, log_ratio_BT, valid_BT)
    gap = mismatch(old_logp, sampler_logp, valid_BT)
    out |= {
      f"mismatch_{name}": value
      for name, value in gap.items()
      if not name.startswith("chi2")
    }
    out = {f"mismatch/{name}": value for name, value in out.items()}
    weight = weight_BT if cfg["rollout_is"] else None
    return weight, kept_BT.astype(dtype), out

  return correct


def native(config: options.Config) -> Chain:
  """The native chain of a config of this generation."""
  return chain(*_stages(_read(config)))


def _stages(cfg) -> list[Stage]:
  """The weight first and a token mask last, so that each sees the incoming mask."""
  high, low = cfg["rollout_is_threshold"], cfg["rollout_is_threshold_lower"]
  level, veto_low = cfg["rollout_is_level"], cfg["rollout_is_veto_threshold"]
  if high is None:
    return []
  truncates = cfg["rollout_is_mode"] == "truncate"
  weights = [truncate(high, level=level) if truncates else importance(level)]
  vetoes = [] if veto_low is None else [veto(veto_low)]
  rejections = [] if truncates else [reject(high, low, level=level)]
  return [*(weights if cfg["rollout_is"] else []), *vetoes, *rejections]


def _read(config: options.Config) -> dict[str, Any]:
  sections = SECTIONS._replace(peer=_PEER)
  found = sections.locate(config, "correction of 2025-10")
  cfg = options.read(_PEER, found, _DEFAULTS)
  if "rollout_is_threshold" not in found:
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


def _apply(cfg, log_ratio_BT, valid_BT):
  """Weight, mask, and metrics, all of the raw ratio: before any bound."""
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
  outside_BT = ~((raw_BT >= low) & (raw_BT <= high))
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
  kept_BT = valid_BT & ~bad_BT.any(1, keepdims=True)
  if cfg["rollout_is_mode"] == "truncate":
    return jnp.minimum(raw_BT, high), kept_BT, out
  out["rollout_is_masked_fraction"] = mean(outside_BT)
  # A row without tokens has a ratio too at the levels of rows, 1.
  rows_B = outside_BT[:, 0] if row_B is not None else (outside_BT & valid_BT).any(1)
  out["rollout_is_seq_masked_fraction"] = share(rows_B)
  return raw_BT, kept_BT & ~outside_BT, out
