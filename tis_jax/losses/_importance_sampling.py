"""The plain importance-sampled policy gradient."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.metrics import Metrics


def importance_sampling(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
  """Unclipped surrogate, per token: `loss = -A exp(logp - old_logp)`.

  Its gradient is the per-token importance-sampled policy gradient, with nothing to
  bound the weight but the clamp of the log-ratio at +-20.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> old_logp = jnp.log(jnp.array([[0.5, 0.25]]))
  >>> importance_sampling(logp, old_logp, jnp.array([1.0]))[0].tolist()
  [[-1.0, -2.0]]

  References: Tinker's and SkyRL's `importance_sampling`.
  """
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = clamped_log_ratio(logp, old_logp)
  return -advantages * jnp.exp(log_ratio), ratio_metrics(log_ratio, mask)
