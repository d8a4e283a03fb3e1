"""VESPO: a smooth, bounded function of the whole sequence's importance weight."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import as_segment_ids, check_number
from tis_jax.numerics.metrics import Metrics, mean
from tis_jax.numerics.ratios import clamp_log, difference
from tis_jax.numerics.units import sequence_sum


def vespo(
  logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  power_positive: float = 2.0,
  rate_positive: float = 3.0,
  power_negative: float = 3.0,
  rate_negative: float = 2.0,
) -> tuple[jax.Array, Metrics]:
  """VESPO: REINFORCE under a gamma-shaped weight of the sequence's ratio.

  With `W = prod_t pi / mu` over the sequence and `sg` the stop-gradient:

    loss = -A sg(W^power exp(rate (1 - W))) logp

  The weight is 1 at W = 1 and falls off on both sides, smoothly, without dividing by
  the length. Powers and rates differ by the sign of the advantage.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    sampler_logp: `[B, T]` log-probs that the sampler gave its tokens.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
    power_positive: exponent k where A >= 0.
    rate_positive: rate lambda where A >= 0.
    power_negative: exponent k where A < 0.
    rate_negative: rate lambda where A < 0.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, a negative power or rate.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> sampler_logp = jnp.log(jnp.array([[0.5, 0.25]]))  # W = 2, weight 4 exp(-3)
  >>> vespo(logp, sampler_logp, jnp.array([1.0]))[0].round(3).tolist()
  [[0.138, 0.138]]

  References: arXiv:2602.10693; powers and rates as in TRL.
  """
  for name, value in (
    ("power_positive", power_positive),
    ("rate_positive", rate_positive),
    ("power_negative", power_negative),
    ("rate_negative", rate_negative),
  ):
    check_number(name, value, at_least=0)
  mask, advantages, logp, sampler_logp = policy_inputs(
    mask, advantages, logp=logp, sampler_logp=sampler_logp
  )
  segment_ids = as_segment_ids(segment_ids, logp.shape)
  log_ratio = difference(jax.lax.stop_gradient(logp), sampler_logp)
  log_weight = clamp_log(sequence_sum(log_ratio, mask, segment_ids))
  success = advantages >= 0
  power = jnp.where(success, power_positive, power_negative)
  rate = jnp.where(success, rate_positive, rate_negative)
  weight = jnp.exp(power * log_weight + rate * (1.0 - jnp.exp(log_weight)))
  metrics = ratio_metrics(log_ratio, mask) | {"policy/weight": mean(weight, mask)}
  return -advantages * weight * logp, metrics
