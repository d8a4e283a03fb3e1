"""REINFORCE on the sampler's ratio, zeroed out of range: IcePop as a loss, GLM-5."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, fraction


def rollout_is(
  logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  low: float = 0.5,
  high: float = 5.0,
) -> tuple[jax.Array, Metrics]:
  """REINFORCE weighted by `pi / mu` inside a band, nothing outside it.

  With `r = exp(logp - sampler_logp)` and `sg` the stop-gradient:

    loss = -A sg(r 1[low <= r <= high]) logp

  One ratio covers the sampler's mismatch and the drift since, so no recomputed
  log-probs are needed and no further importance weight may be applied.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    sampler_logp: `[B, T]` log-probs that the sampler gave its tokens.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    low: smallest ratio that trains.
    high: largest ratio that trains.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a band without a ratio in it.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> sampler_logp = jnp.log(jnp.array([[0.5, 0.05]]))  # ratios 1 and 10
  >>> rollout_is(logp, sampler_logp, jnp.array([1.0]))[0].round(3).tolist()
  [[0.693, 0.0]]

  References: IcePop, Ring-1T, arXiv:2510.18855; GLM-5, arXiv:2602.15763; SkyRL's
  `rollout_is`.
  """
  check_number("low", low, at_least=0)
  if not isinstance(low, Tracer):
    check_number("high", high, above=low)
  mask, advantages, logp, sampler_logp = policy_inputs(
    mask, advantages, logp=logp, sampler_logp=sampler_logp
  )
  log_ratio = clamped_log_ratio(jax.lax.stop_gradient(logp), sampler_logp)
  ratio = jnp.exp(log_ratio)
  inside = (low <= ratio) & (ratio <= high)
  metrics = ratio_metrics(log_ratio, mask) | {"policy/clipped": fraction(~inside, mask)}
  return -advantages * jnp.where(inside, ratio, 0.0) * logp, metrics
