"""verl: the critic's loss."""

from collections.abc import Callable

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import constant, masked_mean
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.compat.verl import aggregation

_PEER = "verl"
_DEFAULTS = {
  "cliprange_value": 0.5,
  "loss_agg_mode": "token-mean",
  "loss_scale_factor": None,
  "global_batch_info": None,
}


def value_loss(config: options.Config = None) -> Callable:
  r"""The critic's loss of verl's critic options.

  With V_c = clip(V, V_old - `cliprange_value`, V_old + `cliprange_value`), a token's
  loss is max((V - R)^2, (V_c - R)^2), and the loss half its aggregate.

  Args:
    config: `cliprange_value`, `loss_agg_mode`, `loss_scale_factor` of the critic
      section, and `global_batch_info` as for `agg_loss`.

  Returns:
    `fn(values, old_values, returns, mask, **counts) -> (loss, metrics)`, the arrays
    `[B, T]`, the counts as for `agg_loss`; metrics `critic/vf_loss`,
    `critic/vf_clipfrac` and `critic/vpred_mean`.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = value_loss({"cliprange_value": 0.2})
  >>> one = jnp.ones((1, 2))
  >>> loss, metrics = fn(one, jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 1.0]]), one)
  >>> loss.round(3), metrics["critic/vf_clipfrac"]
  (Array(0.41, dtype=float32), Array(0.5, dtype=float32))

  Source: verl, `trainer/ppo/core_algos.py` and `workers/utils/losses.py` at 1dda039b9
  (2026-08-22).
  """
  found = SECTIONS.locate(config, "value_loss")
  cfg = aggregation.check(options.read(_PEER, found, _DEFAULTS))
  width = options.number(_PEER, "cliprange_value", cfg["cliprange_value"], at_least=0)

  def fn(values, old_values, returns, mask, **counts):
    valid_BT = jnp.asarray(mask) != 0
    values = jnp.where(valid_BT, jnp.asarray(values, jnp.float32), 0.0)
    old_values, returns = constant(old_values, valid_BT), constant(returns, valid_BT)
    bounded_BT = jnp.clip(values, old_values - width, old_values + width)
    free_BT, bounded_BT = (values - returns) ** 2, (bounded_BT - returns) ** 2
    worse_BT = jnp.maximum(free_BT, bounded_BT)
    loss = 0.5 * aggregation.aggregate(cfg, worse_BT, valid_BT, **counts)
    clipped_BT = (bounded_BT > free_BT).astype(jnp.float32)
    return loss, {
      "critic/vf_loss": loss,
      "critic/vf_clipfrac": masked_mean(clipped_BT, valid_BT),
      "critic/vpred_mean": masked_mean(values, valid_BT),
    }

  return fn
