"""Entropy control through the covariance of log-prob and advantage: clip-cov, kl-cov.

Tokens whose log-prob and advantage are both far above average drive the entropy down.
Both losses find them inside the mask they are given: pass the mask that a correction
left, and rejected tokens are neither selected nor counted. The selection is over the
rows at hand, so a micro-batch selects on its own.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import check_clip, clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.losses._ppo import clipped_surrogate
from tis_jax.losses._traits import policy_loss
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import difference, magnitude, ratio
from tis_jax.numerics.selection import top_k_mask


@policy_loss(selects=True)
def clip_cov(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  key: jax.Array,
  select: float = 2e-4,
  covariance_low: float = 1.0,
  covariance_high: float = 5.0,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> tuple[jax.Array, Metrics]:
  """Clip-Cov: PPO, with a few high-covariance tokens cut out of the gradient.

  With `c = (A - mean A)(logp - mean logp)` over the mask, `max(floor(select N), 1)`
  tokens, drawn uniformly from those that PPO does not clip and that have
  `covariance_low < c < covariance_high`, get loss 0; the rest is PPO without dual clip.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B, T]`, or `[B]`; unscaled, as the bounds on c are absolute.
    mask: `[B, T]` bool or 0/1, after rejection; None trains every token.
    key: key that draws the tokens; a fresh one each update.
    select: share of the masked tokens to cut, 0 to 1.
    covariance_low: lower bound on c.
    covariance_high: upper bound on c.
    clip_low: width of PPO's range below 1.
    clip_high: width of PPO's range above 1.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or an empty range.

  >>> import jax, jax.numpy as jnp
  >>> logp, advantages = jnp.array([[-4.0, 0.0]]), jnp.array([[-1.0, 1.0]])
  >>> loss, _ = clip_cov(logp, logp, advantages, key=jax.random.key(0))
  >>> sorted(loss[0].tolist())  # both have c = 2; one of them is cut
  [-0.0, 1.0]

  References: Cui et al. 2025, arXiv:2505.22617.
  """
  check_clip(clip_low, clip_high)
  check_number("select", select, at_least=0, at_most=1)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = clamped_log_ratio(logp, old_logp)
  token_loss, clipped, _ = clipped_surrogate(
    jnp.exp(log_ratio), advantages, clip_low, clip_high
  )
  covariance = _covariance(logp, advantages, mask)
  eligible = mask & ~clipped & (covariance > covariance_low)
  eligible &= covariance < covariance_high
  cut = top_k_mask(jax.random.uniform(key, logp.shape), eligible, _count(select, mask))
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction(clipped, mask),
    "policy/covariance_clipped": fraction(cut, mask),
  }
  return jnp.where(cut, 0.0, token_loss), metrics


@policy_loss(selects=True)
def kl_cov(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  select: float = 2e-4,
  coefficient: float = 1.0,
) -> tuple[jax.Array, Metrics]:
  """KL-Cov: the unclipped surrogate, with a penalty on the highest covariances.

  With `c = (A - mean A)(logp - mean logp)` over the mask:

    loss = -A exp(logp - old_logp)
           + coefficient |logp - old_logp|    on the max(floor(select N), 1) largest c

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B, T]`, or `[B]`; unscaled, or the penalty outweighs them.
    mask: `[B, T]` bool or 0/1, after rejection; None trains every token.
    select: share of the masked tokens to penalise, 0 to 1.
    coefficient: weight of the penalty, per nat.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a share out of range.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5, 0.1]]))
  >>> advantages = jnp.array([[1.0, 0.0]])
  >>> loss, metrics = kl_cov(logp, logp, advantages)
  >>> loss.tolist(), metrics["policy/covariance_penalised"].total.item()
  ([[-1.0, 0.0]], 1.0)

  References: Cui et al. 2025, arXiv:2505.22617.
  """
  check_number("select", select, at_least=0, at_most=1)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = difference(logp, old_logp)
  covariance = _covariance(logp, advantages, mask)
  chosen = top_k_mask(covariance, mask, _count(select, mask))
  penalty = jnp.where(chosen, coefficient * magnitude(log_ratio), 0.0)
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/covariance_penalised": fraction(chosen, mask)
  }
  return -advantages * ratio(log_ratio) + penalty, metrics


def _covariance(logp, advantages, mask):
  """Each token's part of the covariance over the mask; no gradient."""
  logp = jax.lax.stop_gradient(logp)
  count = jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)
  # Both are 0 off the mask, so plain sums are masked sums.
  return (advantages - advantages.sum() / count) * (logp - logp.sum() / count)


def _count(share, mask):
  """`max(floor(share N), 1)`; the nudge keeps 0.1 of 30 at 3 in fp32."""
  tokens = mask.sum(dtype=jnp.float32)
  return jnp.maximum(jnp.floor(share * tokens * (1.0 + 1e-6)), 1.0).astype(jnp.int32)
