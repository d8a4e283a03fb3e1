"""verl: KL penalties by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Array
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.numerics.ratios import magnitude

_PEER = "verl"
_DEFAULTS = {
  "kl_penalty": None,
  "kl_loss_type": None,
  "use_kl_in_reward": False,
  "use_kl_loss": False,
}
_KINDS = {
  "kl": "k1",
  "k1": "k1",
  "abs": "abs",
  "mse": "k2",
  "k2": "k2",
  "low_var_kl": "k3",
  "k3": "k3",
}


def kl_penalty(config: options.Config = None) -> Callable[..., Array]:
  """verl's per-token KL penalty, where x = logp - ref_logp.

  `kl`, `k1`: x; `abs`: |x|; `mse`, `k2`: x^2 / 2; `low_var_kl`, `k3`: exp(-x) - 1 + x
  with -x clamped to +-20 and the result to +-10. A `+` behind the name keeps the value
  and takes the gradient of k2, whose expectation is that of the true KL.

  Args:
    config: `{"kl_penalty": name}`, or `{"kl_loss_type": name}` from the actor section.
      Of both, that which `use_kl_in_reward` or `use_kl_loss` switches on.

  Returns:
    `fn(logp, ref_logp) -> kl`, elementwise.

  Raises:
    ValueError: an unknown key or name.

  >>> kl_penalty({"kl_penalty": "k3"})(jnp.array([-1.0]), jnp.array([-1.5]))
  Array([0.10653067], dtype=float32)

  Source: verl, `trainer/ppo/core_algos.py` at 1dda039b9 (2026-08-22).
  """
  cfg = options.read(_PEER, SECTIONS.locate(config, "kl_penalty"), _DEFAULTS)
  for key in ("use_kl_in_reward", "use_kl_loss"):
    options.flag(_PEER, key, cfg[key])
  kinds = {"kl_penalty": "use_kl_in_reward", "kl_loss_type": "use_kl_loss"}
  given = [key for key in kinds if cfg[key] is not None]
  if len(given) > 1:  # a whole config has both, and says which it uses
    given = [key for key in given if cfg[kinds[key]]]
    if len(given) != 1:
      raise ValueError(
        f"{_PEER}: give kl_penalty or kl_loss_type, not both, or with them one of "
        "use_kl_in_reward and use_kl_loss as true"
      )
  name = cfg[given[0]] if given else "kl"
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
    # torch's |x| has gradient 0 at 0, where every token is on policy; JAX's has 1.
    return magnitude(x)
  if kind == "k2":
    return x * x / 2
  clamped = jnp.clip(-x, -20.0, 20.0)
  return jnp.clip(jnp.expm1(clamped) - clamped, -10.0, 10.0)
