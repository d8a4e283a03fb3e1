"""Losses that verl and SkyRL define alike, and unlike `tis_jax.losses`.

Arrays come in fp32 and clean under the mask. Each returns token losses `[B, T]`.
"""

import jax
import jax.numpy as jnp

from tis_jax.compat.arrays import masked_mean
from tis_jax.losses import clipped_surrogate


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
