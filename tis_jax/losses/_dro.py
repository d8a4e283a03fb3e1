"""DRO: direct reward optimisation, a quadratic pull towards the anchor."""

import jax
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.losses._traits import policy_loss
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics
from tis_jax.numerics.ratios import difference


# It takes old_logp to pull towards it, not to weigh by a ratio to it.
@policy_loss(ratio_to="none")
def dro(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  beta: float,
) -> tuple[jax.Array, Metrics]:
  """DRO: `loss = -(A logp - beta/2 (logp - old_logp)^2)`, per token.

  No importance weight at all: a quadratic penalty on the log-ratio holds the policy
  near the one that sampled, which allows data of any origin.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs of the policy to stay near: of the start of the update,
      or of the sampler.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    beta: strength of the pull, above 0. There is no default: it sets the trade-off.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a beta that is not above 0.

  >>> import jax.numpy as jnp
  >>> logp, old_logp = jnp.array([[-1.0]]), jnp.array([[-3.0]])
  >>> dro(logp, old_logp, jnp.array([1.0]), beta=0.5)[0].tolist()
  [[2.0]]

  References: Richemond et al. 2024, arXiv:2405.19107; Tinker's and verl's `dro`.
  """
  check_number("beta", beta, above=0)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  log_ratio = difference(logp, old_logp)
  token_loss = -advantages * logp + 0.5 * beta * log_ratio**2
  return token_loss, ratio_metrics(log_ratio, mask)
