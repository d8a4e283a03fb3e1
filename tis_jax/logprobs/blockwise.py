"""The formulas on one block of logits, shared by the kernels.

Everything per token is a column `[..., 1]` here, beside a block `[..., C]`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tis_jax.logprobs.plan import FLOOR, Cotangent, Stats


def update(stats: Stats, logits, hit, temperature) -> Stats:
  """`Stats` after another block.

  Args:
    stats: columns so far; `moment` and `squared` None where they are not asked for.
      `top` is left.
    logits: `[..., C]` fp32, before the temperature; -inf where there is no token.
    hit: `[..., C]` bool, where the target is.
    temperature: column, or None for 1.
  """
  peak = jnp.maximum(stats.peak, jnp.max(logits, axis=-1, keepdims=True))
  shifted = tempered(logits - peak, temperature)
  exp_shifted = jnp.exp(shifted)
  drop = peak_drop(stats.peak, peak, temperature)
  decay = jnp.exp(drop)
  moment = None
  if stats.moment is not None:
    # exp(-inf) * -inf is NaN where the limit is 0.
    terms = jnp.where(exp_shifted > 0, exp_shifted * shifted, 0.0)
    moment = decay * (stats.moment + stats.total * drop) + _row_sum(terms)
  squared = None
  if stats.squared is not None:
    squared = decay**2 * stats.squared + _row_sum(exp_shifted**2)
  return stats._replace(
    peak=peak,
    total=decay * stats.total + _row_sum(exp_shifted),
    moment=moment,
    at_target=stats.at_target + _row_sum(jnp.where(hit, logits, 0.0)),
    squared=squared,
  )


def tempered(difference, temperature):
  """A difference of logits, divided by the temperature.

  Always in this order: of two logits of 1e8 (or of 10, at temperature 1e-7) that were
  divided first, each would be rounded by more than their difference.
  """
  return difference if temperature is None else difference / temperature


def peak_drop(before, after, temperature):
  """Finite, also where nothing came before and the temperature is tiny."""
  return jnp.maximum(tempered(before - after, temperature), FLOOR)


def logits_cotangent(log_p, hit, entropy, cotangent: Cotangent):
  """`[..., C]` d loss / d l, where l = logits / temperature.

  Args:
    log_p: `[..., C]` fp32.
    hit: `[..., C]` bool, where the target is.
    entropy: column; needed with `cotangent.entropy`.
    cotangent: columns.
  """
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


def shifted_product(d_scaled, shifted):
  """Column of sum d loss/d l_v (l_v - peak): the temperature's gradient but for 1/T."""
  return _row_sum(jnp.where(d_scaled != 0, d_scaled * shifted, 0.0))


def is_kept(kept, ids):
  """`[..., C]` bool: whether each id is among `kept` `[..., K]`, or none is.

  K compares for each logit: no gather, and nothing of that size is held.
  """
  member = jnp.any(kept[..., :, None] == ids[..., None, :], axis=-2)
  return member | jnp.all(kept < 0, axis=-1, keepdims=True)


def at_ids(candidates, ids, logits):
  """`[..., K]`: the logit of each candidate, 0 where it lies in another block.

  One candidate after the other: compared at once, a CPU would write out K blocks.
  """
  one = lambda candidate: _row_sum(jnp.where(candidate[..., None] == ids, logits, 0.0))[
    ..., 0
  ]
  return jnp.moveaxis(lax.map(one, jnp.moveaxis(candidates, -1, 0)), 0, -1)


def add_at_ids(block, cotangent, candidates, ids):
  """`[..., C]`: the block with the cotangent of each candidate added at its place."""

  def one(block, pair):
    candidate, pull = (x[..., None] for x in pair)
    return block + jnp.where(candidate == ids, pull, 0.0), None

  pairs = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (candidates, cotangent))
  return lax.scan(one, block, pairs)[0]


def soft_capped(logits, cap: float | None):
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def through_soft_cap(d_capped, capped, cap: float | None):
  return d_capped if cap is None else d_capped * (1.0 - jnp.square(capped / cap))


def _row_sum(x):
  return jnp.sum(x, axis=-1, keepdims=True)
