"""OpenRLHF: `--algo.advantage.is_correction_*`."""

from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, masked_mean, prepare
from tis_jax.compat.sections.openrlhf import SECTIONS
from tis_jax.corrections import Chain, chain, clip, importance, reject, zero_outside

VERSION = "3c3be62 (2026-08-13)"
_PEER = "OpenRLHF"
used = SECTIONS.used
_DEFAULTS = {
  "is_correction_enable": False,
  "is_correction_type": "tis",
  "is_correction_threshold": (0.5, 5.0),
}


def correction(config: options.Config = None) -> Correct:
  r"""The correction of OpenRLHF's vLLM options.

  With rho the token ratio and [low, high] the threshold: `tis` holds rho inside the
  band at both ends, `icepop` zeroes it outside, `seq-mask-tis` zeroes the sequences
  whose geometric mean is outside and leaves rho itself, unbounded, on the others. All
  of it is in the weight: the mask comes back as it was, for the denominator. The
  default band is one for tokens, far wider than a geometric mean ever gets.

  Args:
    config: `is_correction_enable` (off), `is_correction_type` (tis, icepop,
      seq-mask-tis), `is_correction_threshold` (`[low, high]`, default 0.5 and 5).

  Returns:
    `fn(old_logp, sampler_logp, mask) -> (weight, mask, metrics)`; the weight is None
    when not enabled.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = correction({"is_correction_enable": True})
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.1, 0.5]]))
  >>> fn(old, sampler, jnp.ones((1, 2)))[0]
  Array([[5. , 0.5]], dtype=float32)

  Source: OpenRLHF, `models/loss.py` (2026-08).
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  weigh = chain(*_stages(cfg), metrics="none")

  def correct(old_logp, sampler_logp, mask):
    dtype = jnp.asarray(mask).dtype
    old_logp, sampler_logp, valid_BT = prepare(old_logp, sampler_logp, mask)
    metrics = {"vllm_kl": masked_mean(sampler_logp - old_logp, valid_BT)}
    weight_BT = None
    if cfg["is_correction_enable"]:
      weight_BT, kept_BT, _ = weigh(old_logp, sampler_logp, valid_BT)
      weight_BT = jnp.where(kept_BT, weight_BT, 0.0)
    return weight_BT, valid_BT.astype(dtype), metrics

  return correct


def native(config: options.Config = None) -> Chain:
  """The native chain of an OpenRLHF config.

  OpenRLHF divides by the tokens of the incoming mask: give `aggregate` that one as its
  `denominator_mask`.

  >>> config = {"is_correction_enable": True, "is_correction_type": "icepop"}
  >>> [stage.name for stage in native(config).stages]
  ['zero_outside']
  """
  return chain(*_stages(_check(SECTIONS.locate(config, "correction"))))


def _stages(cfg) -> list:
  if not cfg["is_correction_enable"]:
    return []
  low, high = cfg["is_correction_threshold"]
  if cfg["is_correction_type"] == "tis":
    return [clip(high, low)]
  if cfg["is_correction_type"] == "icepop":
    return [zero_outside(high, low)]
  return [reject(high, low, level="geometric"), importance("token")]


def _check(found: dict[str, Any]) -> dict[str, Any]:
  cfg = options.read(_PEER, found, _DEFAULTS)
  options.flag(_PEER, "is_correction_enable", cfg["is_correction_enable"])
  options.choice(
    _PEER,
    "is_correction_type",
    cfg["is_correction_type"],
    ("tis", "icepop", "seq-mask-tis"),
  )
  key = "is_correction_threshold"
  bounds = cfg[key].split() if isinstance(cfg[key], str) else list(cfg[key])
  if len(bounds) != 2:
    raise ValueError(f"{_PEER}: {key} must be two bounds, low and high; got {cfg[key]}")
  cfg[key] = options.band(_PEER, f"{key}[0]", bounds[0], f"{key}[1]", bounds[1])
  return cfg
