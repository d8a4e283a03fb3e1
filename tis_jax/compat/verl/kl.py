"""verl: KL penalties by name."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Array

_PEER = "verl"
_KINDS = {
  "kl": "k1",
  "k1": "k1",
  "abs": "abs",
  "mse": "k2",
  "k2": "k2",
  "low_var_kl": "k3",
  "k3": "k3",
}


def kl_penalty(config: Mapping[str, Any] | None = None) -> Callable[..., Array]:
  """verl's per-token KL penalty, where x = logp - ref_logp.

  `kl`, `k1`: x; `abs`: |x|; `mse`, `k2`: x^2 / 2; `low_var_kl`, `k3`: exp(-x) - 1 + x
  with -x clamped to +-20 and the result to +-10. A `+` behind the name keeps the value
  and takes the gradient of k2, whose expectation is that of the true KL.

  Args:
    config: `{"kl_penalty": name}`, or `{"kl_loss_type": name}` from the actor section.

  Returns:
    `fn(logp, ref_logp) -> kl`, elementwise.

  Raises:
    ValueError: an unknown key or name.

  >>> kl_penalty({"kl_penalty": "k3"})(jnp.array([-1.0]), jnp.array([-1.5]))
  Array([0.10653067], dtype=float32)

  Source: verl, `trainer/ppo/core_algos.py` (2026-08).
  """
  cfg = options.read(_PEER, config, {"kl_penalty": None, "kl_loss_type": None})
  chosen = [cfg[key] for key in ("kl_penalty", "kl_loss_type") if cfg[key] is not None]
  if len(chosen) > 1:
    raise ValueError(f"{_PEER}: give kl_penalty or kl_loss_type, not both")
  name = chosen[0] if chosen else "kl"
  names = tuple(f"{kind}{plus}" for plus in ("", "+") for kind in _KINDS)
  options.choice(_PEER, "kl_penalty", name, names)
  kind, straight_through = _KINDS[name.removesuffix("+")], name.endswith("+")

  def fn(logp, ref_logp):
    x = jnp.asarray(logp, jnp.float32) - jnp.asarray(ref_logp, jnp.float32)
    value = _value(kind, x)
    if straight_through:
      proxy = _value("k2", x)
      value = proxy + jax.lax.stop_gradient(value - proxy)
    return value

  return fn


def _value(kind: str, x: Array) -> Array:
  if kind == "k1":
    return x
  if kind == "abs":
    return jnp.abs(x)
  if kind == "k2":
    return x * x / 2
  clamped = jnp.clip(-x, -20.0, 20.0)
  return jnp.clip(jnp.expm1(clamped) - clamped, -10.0, 10.0)
