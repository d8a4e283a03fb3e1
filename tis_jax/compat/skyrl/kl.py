"""SkyRL: `compute_approx_kl`, by `kl_estimator_type`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Array
from tis_jax.compat.sections.skyrl import SECTIONS
from tis_jax.numerics.ratios import magnitude

_PEER = "SkyRL"
_KINDS = ("k1", "abs", "k2", "k3")


def kl_penalty(config: Mapping[str, Any] | None = None) -> Callable[..., Array]:
  """SkyRL's per-token KL estimate, where x = logp - ref_logp.

  `k1`: x; `abs`: |x|, of gradient 0 at 0; `k2`: x^2 / 2; `k3`: exp(-x) - 1 + x with -x
  clamped to +-20 and the result to +-10. A mask that is not 0 or 1 scales.

  Args:
    config: `{"kl_estimator_type": name}`, k3 unless given.

  Returns:
    `fn(logp, ref_logp, mask=None) -> kl`, elementwise, 0 where the mask is.

  Raises:
    ValueError: an unknown key or name.

  >>> fn = kl_penalty()
  >>> fn(jnp.array([-1.0, 0.0]), jnp.array([-1.5, jnp.nan]), jnp.array([1, 0])).round(4)
  Array([0.1065, 0.    ], dtype=float32)

  Source: SkyRL, `backends/skyrl_train/utils/ppo_utils.py` (2026-08).
  """
  cfg = options.read(
    _PEER, SECTIONS.locate(config, "kl_penalty"), {"kl_estimator_type": "k3"}
  )
  kind = options.choice(_PEER, "kl_estimator_type", cfg["kl_estimator_type"], _KINDS)

  def fn(logp, ref_logp, mask=None):
    logp, ref_logp = jnp.asarray(logp, jnp.float32), jnp.asarray(ref_logp, jnp.float32)
    if mask is None:
      return _estimate(kind, logp - ref_logp)
    mask = jnp.asarray(mask)
    clean = lambda x: jnp.where(mask != 0, x, 0.0)
    return _estimate(kind, clean(logp) - clean(ref_logp)) * mask.astype(jnp.float32)

  return fn


def _estimate(kind: str, x: Array) -> Array:
  if kind == "k1":
    return x
  if kind == "abs":
    return magnitude(x)
  if kind == "k2":
    return x * x / 2
  clamped = jnp.clip(-x, -20.0, 20.0)
  return jnp.clip(jnp.expm1(clamped) - clamped, -10.0, 10.0)
