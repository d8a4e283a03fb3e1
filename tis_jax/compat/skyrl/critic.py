"""SkyRL: `ppo_critic_loss`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import masked_mean
from tis_jax.compat.sections.skyrl import SECTIONS

_PEER = "SkyRL"


def value_loss(config: Mapping[str, Any] | None = None) -> Callable:
  """SkyRL's critic loss: half the mean over rows of the rows' mean clipped square.

    max((V - R)^2, (V_old + clip(V - V_old, +-value_clip) - R)^2) / 2

  A row without tokens counts as 0 in the mean over rows.

  Args:
    config: `{"value_clip": width}`, 0.2 unless given; None for no clip.

  Returns:
    `fn(values, old_values, returns, mask=None) -> (loss, metrics)`, `[B, T]` arrays;
    the metric `values_clipfrac` is not there without a clip.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> loss, metrics = value_loss()(
  ...   jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 1.0]])
  ... )
  >>> loss.round(3), metrics["values_clipfrac"]  # of 1 and 0.64
  (Array(0.41, dtype=float32), Array(0.5, dtype=float32))

  Source: SkyRL, `backends/skyrl_train/utils/ppo_utils.py` (2026-08).
  """
  width = options.read(
    _PEER, SECTIONS.locate(config, "value_loss"), {"value_clip": 0.2}
  )["value_clip"]
  if width is not None:
    width = options.number(_PEER, "value_clip", width, at_least=0)

  def fn(values, old_values, returns, mask=None):
    valid_BT = jnp.ones(jnp.shape(values), bool) if mask is None else mask != 0
    clean = lambda x: jnp.where(valid_BT, jnp.asarray(x, jnp.float32), 0.0)
    values, old_values, returns = clean(values), clean(old_values), clean(returns)
    square_BT, metrics = (values - returns) ** 2, {}
    if width is not None:
      bounded_BT = old_values + jnp.clip(values - old_values, -width, width)
      bounded_BT = (bounded_BT - returns) ** 2
      clipped_BT = (bounded_BT > square_BT).astype(jnp.float32)
      metrics = {"values_clipfrac": masked_mean(clipped_BT, valid_BT)}
      square_BT = jnp.maximum(square_BT, bounded_BT)
    return 0.5 * masked_mean(square_BT, valid_BT, 1).mean(), metrics

  return fn
