"""CISPO: REINFORCE under a clipped importance weight that carries no gradient."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import check_clip, clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.metrics import Metrics, fraction


def cispo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  clip_low: float = 1.0,
  clip_high: float = 4.0,
) -> tuple[jax.Array, Metrics]:
  """CISPO anchored on the policy at the start of the update.

  With `r = exp(logp - old_logp)` and `sg` the stop-gradient:

    loss = -A sg(clip(r, 1 - clip_low, 1 + clip_high)) logp

  Unlike PPO's clip, a token out of range keeps its gradient, with a bounded weight.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    clip_low: width of the range below 1; 1 leaves the weight free to fall to 0.
    clip_high: width of the range above 1; 4 caps the weight at ScaleRL's 5.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a clip range that holds no ratio.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> old_logp = jnp.log(jnp.array([[0.5, 0.05]]))  # ratios 1 and 10
  >>> cispo(logp, old_logp, jnp.array([1.0]))[0].round(3).tolist()
  [[0.693, 3.466]]

  References: MiniMax-M1, arXiv:2506.13585; ScaleRL, arXiv:2510.13786.
  """
  return _cispo(logp, old_logp, advantages, mask, clip_low, clip_high)


def sampler_cispo(
  logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  clip_low: float = 1.0,
  clip_high: float = 4.0,
) -> tuple[jax.Array, Metrics]:
  """CISPO anchored on the sampler: its weight is `pi / mu`, mismatch and drift in one.

  `sampler_logp` (`[B, T]`, what the engine said of its tokens) stands in the place of
  `old_logp`; otherwise loss, arguments, returns and errors are those of `cispo`. It
  needs no recomputed log-probs and takes no further importance weight.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5]]))
  >>> sampler_cispo(logp, logp - 1.0, jnp.array([1.0]))[0].round(3).tolist()
  [[1.884]]

  References: SkyRL's `cispo_anchor="rollout"`.
  """
  return _cispo(logp, sampler_logp, advantages, mask, clip_low, clip_high)


def _cispo(logp, anchor_logp, advantages, mask, clip_low, clip_high):
  check_clip(clip_low, clip_high)
  mask, advantages, logp, anchor_logp = policy_inputs(
    mask, advantages, logp=logp, anchor_logp=anchor_logp
  )
  log_ratio = clamped_log_ratio(jax.lax.stop_gradient(logp), anchor_logp)
  ratio = jnp.exp(log_ratio)
  weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction(weight != ratio, mask)
  }
  return -advantages * weight * logp, metrics
