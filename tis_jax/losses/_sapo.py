"""SAPO: a soft gate in the place of PPO's clip."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics


def sapo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  temperature_positive: float = 1.0,
  temperature_negative: float = 1.05,
) -> tuple[jax.Array, Metrics]:
  """SAPO: a sigmoid gate on the ratio.

  With `r = exp(logp - old_logp)` and the temperature of the advantage's sign:

    loss = -A (4 / temperature) sigmoid(temperature (r - 1))

  At r = 1 the gradient is REINFORCE's; it fades smoothly on both sides, faster for
  negative advantages. Only the gradient is meaningful: the value is 2 / temperature at
  r = 1. The paper aggregates with "sequence_mean".

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    temperature_positive: gate's steepness where A > 0.
    temperature_negative: gate's steepness where A <= 0.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a temperature that is not above 0.

  >>> import jax, jax.numpy as jnp
  >>> loss = lambda x: sapo(x, jnp.zeros((1, 1)), jnp.array([3.0]))[0].sum()
  >>> loss(jnp.zeros((1, 1))).item(), jax.grad(loss)(jnp.zeros((1, 1))).item()
  (-6.0, -3.0)

  References: arXiv:2511.20347.
  """
  check_number("temperature_positive", temperature_positive, above=0)
  check_number("temperature_negative", temperature_negative, above=0)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = clamped_log_ratio(logp, old_logp)
  temperature = jnp.where(advantages > 0, temperature_positive, temperature_negative)
  gate = jax.nn.sigmoid(temperature * (jnp.exp(log_ratio) - 1.0)) * 4.0 / temperature
  return -advantages * gate, ratio_metrics(log_ratio, mask)
