"""M2PO: a bound on the second moment of the log-ratio, in the place of PPO's clip."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.losses._traits import policy_loss
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import difference, ratio
from tis_jax.numerics.selection import mean_at_most_mask


@policy_loss(selects=True)
def m2po(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  high: float = 0.04,
) -> tuple[jax.Array, Metrics]:
  """M2PO: the unclipped surrogate, less the outliers of a second-moment trust region.

  With `d = logp - old_logp`, look at the tokens that the update carries further out
  (A > 0 and d > 0, or A < 0 and d < 0), and drop those with the largest d^2 until the
  mean of d^2 over the rest is at most `high`:

    loss = -A exp(d) 1[accepted]

  PPO clips every token that is out of range; this removes only as many as the variance
  of the batch demands, which on stale data is far fewer.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs of the policy to trust: of the start of the update, or
      the sampler's (bypass), as for stale data.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token. The selection is over the rows
      at hand, so a micro-batch selects on its own.
    high: bound on the mean of d^2, in nats squared.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a negative bound.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[0.1, 2.0, -2.0]])  # the third moves against the update
  >>> m2po(logp, jnp.zeros((1, 3)), jnp.array([1.0]))[0].round(3).tolist()
  [[-1.105, -0.0, -0.135]]

  References: Zheng et al. 2025, arXiv:2510.01161.
  """
  check_number("high", high, at_least=0)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = difference(logp, old_logp)
  distance = jax.lax.stop_gradient(log_ratio)
  outward = mask & (advantages * distance > 0)
  accepted = mean_at_most_mask(distance**2, outward, high) | ~outward
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction(~accepted, mask)
  }
  return -advantages * jnp.where(accepted, ratio(log_ratio), 0.0), metrics
