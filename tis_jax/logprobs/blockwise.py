"""The formulas on one block of logits, shared by the kernels.

Everything per token is a column `[..., 1]` here, beside a block `[..., C]`.
"""

import jax.numpy as jnp

from tis_jax.logprobs.plan import Cotangent, Stats


def update(stats: Stats, scaled, hit) -> Stats:
  """`Stats` after another block.

  Args:
    stats: columns so far; `moment` None where no entropy is asked for. `top` is left.
    scaled: `[..., C]` fp32, l of the block; -inf where there is no token.
    hit: `[..., C]` bool, where the target is.
  """
  peak = jnp.maximum(stats.peak, jnp.max(scaled, axis=-1, keepdims=True))
  shifted = scaled - peak
  exp_shifted = jnp.exp(shifted)
  drop = stats.peak - peak
  decay = jnp.exp(drop)
  moment = None
  if stats.moment is not None:
    # exp(-inf) * -inf is NaN where the limit is 0.
    terms = jnp.where(exp_shifted > 0, exp_shifted * shifted, 0.0)
    moment = decay * (stats.moment + stats.total * drop) + _row_sum(terms)
  return stats._replace(
    peak=peak,
    total=decay * stats.total + _row_sum(exp_shifted),
    moment=moment,
    at_target=stats.at_target + _row_sum(jnp.where(hit, scaled, 0.0)),
  )


def logits_cotangent(scaled, hit, peak, log_total, entropy, cotangent: Cotangent):
  """`[..., C]` d loss / d l, from the probabilities recomputed.

  Args:
    scaled: `[..., C]` fp32, l of the block.
    hit: `[..., C]` bool, where the target is.
    peak, log_total: columns; log p = (l - peak) - log_total, in this order, so that
      large logits lose no digits.
    entropy: column; needed with `cotangent.entropy`.
    cotangent: columns.
  """
  log_p = (scaled - peak) - log_total
  p = jnp.exp(log_p)
  out = jnp.zeros_like(p)
  if cotangent.common is not None:
    out = p * cotangent.common
  if cotangent.entropy is not None:
    surprise = jnp.where(p > 0, log_p + entropy, 0.0)
    out = out - p * cotangent.entropy * surprise
  if cotangent.logp is not None:
    out = out + jnp.where(hit, cotangent.logp, 0.0)
  return out


def temperature_gradient(d_scaled, scaled, temperature):
  """Column of d loss / d temperature, since l = logits / temperature."""
  moves = jnp.where(d_scaled != 0, d_scaled * scaled, 0.0)
  return -_row_sum(moves) / temperature


def is_kept(kept, ids):
  """`[..., C]` bool: whether each id is among `kept` `[..., K]`, or none is.

  K compares for each logit: no gather, and nothing of that size is held.
  """
  member = jnp.any(kept[..., :, None] == ids[..., None, :], axis=-2)
  return member | jnp.all(kept < 0, axis=-1, keepdims=True)


def soft_capped(logits, cap: float | None):
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def through_soft_cap(d_capped, capped, cap: float | None):
  return d_capped if cap is None else d_capped * (1.0 - jnp.square(capped / cap))


def _row_sum(x):
  return jnp.sum(x, axis=-1, keepdims=True)
