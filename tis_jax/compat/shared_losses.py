"""Losses that verl and SkyRL define alike, and unlike `tis_jax.losses`.

Arrays come in fp32 and clean under the mask. Each returns token losses `[B, T]`.
"""

import jax
import jax.numpy as jnp

from tis_jax.compat.arrays import Array, masked_mean
from tis_jax.losses.ppo import clipped_surrogate


def gspo(logp, old_logp, advantages, valid_BT, clip_low, clip_high):
  """PPO's surrogate on exp(min(s, 10)), s the mean log-ratio of the row.

  The value is the sequence's, the gradient the token's. Returns which tokens the clip
  holds as well.
  """
  sg = jax.lax.stop_gradient
  mean_B = masked_mean(logp - old_logp, valid_BT, 1)
  ratio_BT = jnp.exp(jnp.minimum(logp - sg(logp) + sg(mean_B)[:, None], 10.0))
  token_loss_BT, clipped_BT, _ = clipped_surrogate(
    ratio_BT, advantages, clip_low, clip_high
  )
  return token_loss_BT, clipped_BT


def kl_cov(logp, old_logp, advantages, valid_BT, share, coefficient):
  """-A rho, plus coefficient |log rho| on the `share` of tokens of most covariance."""
  log_ratio_BT = logp - old_logp
  covariance_BT = jnp.where(valid_BT, _covariance(logp, advantages, valid_BT), -jnp.inf)
  picked_BT = _smallest(-covariance_BT, _count(valid_BT, share)) & valid_BT
  penalty_BT = jnp.where(picked_BT, coefficient * jnp.abs(log_ratio_BT), 0.0)
  return -advantages * jnp.exp(log_ratio_BT) + penalty_BT


def clip_cov(
  logp, old_logp, advantages, valid_BT, clip_low, clip_high, share, bounds, key
):
  """PPO's surrogate without some tokens, drawn at random by their covariance.

  A `share` of the valid tokens (at least one) is dropped, from those of covariance
  strictly inside `bounds` that the clip does not hold. Returns the dropped ones too.
  """
  token_loss_BT, clipped_BT, _ = clipped_surrogate(
    jnp.exp(logp - old_logp), advantages, clip_low, clip_high
  )
  low, high = bounds
  covariance_BT = _covariance(logp, advantages, valid_BT)
  inside_BT = (covariance_BT > low) & (covariance_BT < high)
  eligible_BT = valid_BT & ~clipped_BT & inside_BT
  draw_BT = jnp.where(eligible_BT, jax.random.uniform(key, valid_BT.shape), jnp.inf)
  dropped_BT = _smallest(draw_BT, _count(valid_BT, share)) & eligible_BT
  return jnp.where(dropped_BT, 0.0, token_loss_BT), dropped_BT


def dppo_distance(logp, anchor_logp, kind):
  """How far a token's probability rose, and the distance (tv or kl) it moved.

  The kl, between "this token or another" before and after, is NaN where a
  "probability" is above 1; a peer's comparison with it then decides.
  """
  prob, anchor = jnp.exp(jax.lax.stop_gradient(logp)), jnp.exp(anchor_logp)
  if kind == "tv":
    return prob - anchor, jnp.abs(prob - anchor)
  rest = (1 - anchor + 1e-8) / (1 - prob + 1e-8)
  log_ratio = anchor_logp - jax.lax.stop_gradient(logp)
  return prob - anchor, anchor * log_ratio + (1 - anchor) * jnp.log(rest)


def _count(valid_BT: Array, share: float) -> Array:
  return jnp.maximum((share * valid_BT.sum()).astype(jnp.int32), 1)


def _covariance(logp: Array, advantages: Array, valid_BT: Array) -> Array:
  """(A - mean A)(log pi - mean log pi), without gradient."""
  centre = lambda x: x - masked_mean(x, valid_BT)
  return jax.lax.stop_gradient(centre(advantages) * centre(logp))


def _smallest(x_BT: Array, count: Array) -> Array:
  """Marks the `count` smallest entries."""
  order = jnp.argsort(x_BT.ravel())
  rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size))
  return (rank < count).reshape(x_BT.shape)
