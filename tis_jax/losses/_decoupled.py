"""Decoupled PPO: one policy to measure the clip from, another that sampled."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, clean
from tis_jax.losses._ppo import ppo
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, maximum, mean


def decoupled_ppo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  dual_clip: float | None = 3.0,
  weight_high: float | None = 5.0,
) -> tuple[jax.Array, Metrics]:
  """Decoupled PPO: PPO around `old_logp`, weighted by `pi_old / mu`.

    loss = sg(min(exp(old_logp - sampler_logp), weight_high)) ppo(logp, old_logp)

  The same as `ppo` under a chain that truncates token weights, for code that has
  no chain. With a chain, use `ppo`: this loss takes no further weight.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs of the proximal policy, at the start of the update;
      `tis_jax.corrections.interpolate_old_logp` stands in for a forward pass.
    sampler_logp: `[B, T]` log-probs that the sampler gave its tokens.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    clip_low: width of PPO's range below 1.
    clip_high: width of PPO's range above 1.
    dual_clip: see `ppo`.
    weight_high: cap on the weight, above 0; None leaves it uncapped.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, a bound out of range.

  >>> import jax.numpy as jnp
  >>> old_logp = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> sampler_logp = jnp.log(jnp.array([[0.25, 0.05]]))  # weights 2 and 10
  >>> decoupled_ppo(old_logp, old_logp, sampler_logp, jnp.array([1.0]))[0].tolist()
  [[-2.0, -5.0]]

  References: Hilton et al. 2021, arXiv:2110.00641; AReaL, arXiv:2505.24298.
  """
  if weight_high is not None:
    check_number("weight_high", weight_high, above=0)
  token_loss, metrics = ppo(
    logp,
    old_logp,
    advantages,
    mask,
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
  )
  mask, old_logp, sampler_logp = clean(
    mask, old_logp=old_logp, sampler_logp=sampler_logp
  )
  weight = jax.lax.stop_gradient(jnp.exp(clamped_log_ratio(old_logp, sampler_logp)))
  if weight_high is not None:
    weight = jnp.minimum(weight, weight_high)
  metrics = metrics | {
    "policy/weight": mean(weight, mask),
    "policy/weight_max": maximum(weight, mask),
  }
  return token_loss * weight, metrics
