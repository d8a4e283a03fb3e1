"""PPO's clipped surrogate, with clip-higher and dual clip."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import check_clip, clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import clip_within


def ppo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  dual_clip: float | None = 3.0,
) -> tuple[jax.Array, Metrics]:
  """Clipped surrogate of PPO, per token.

  With `r = exp(logp - old_logp)`:

    loss = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
    loss = min(loss, -A dual_clip)                    where A < 0, if dual_clip is given

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs of the policy at the start of the update. In bypass
      mode this is the sampler's, and the ratio then corrects the mismatch itself.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    clip_low: width of the range below 1, at least 0; from 1 on it never binds.
    clip_high: width of the range above 1. Above `clip_low` it is DAPO's clip-higher.
    dual_clip: caps the ratio that a negative advantage can push on; above 1, usually 3.
      None leaves it uncapped.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a clip range that holds no ratio.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[1.5, 0.5]]))
  >>> token_loss, _ = ppo(logp, jnp.zeros((1, 2)), jnp.array([1.0]), clip_high=0.3)
  >>> token_loss.tolist()
  [[-1.3, -0.5]]

  References: Schulman et al. 2017, arXiv:1707.06347; dual clip: Ye et al. 2019,
  arXiv:1912.09729; clip-higher: DAPO, arXiv:2503.14476.
  """
  check_clip(clip_low, clip_high)
  if dual_clip is not None:
    check_number("dual_clip", dual_clip, above=1)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = clamped_log_ratio(logp, old_logp)
  token_loss, clipped, dual_clipped = clipped_surrogate(
    jnp.exp(log_ratio), advantages, clip_low, clip_high, dual_clip
  )
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction(clipped, mask),
    "policy/dual_clipped": fraction(dual_clipped, mask),
  }
  return token_loss, metrics


def clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip=None):
  """PPO's loss on given ratios: `(token_loss, was_clipped, was_dual_clipped)`."""
  free = -advantages * ratio
  bounded = -advantages * clip_within(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = jnp.maximum(free, bounded)
  clipped = bounded > free
  if dual_clip is None:
    return loss, clipped, jnp.zeros(ratio.shape, bool)
  ceiling = -advantages * dual_clip
  negative = advantages < 0
  dual_clipped = negative & (loss > ceiling)
  return jnp.where(negative, jnp.minimum(loss, ceiling), loss), clipped, dual_clipped
