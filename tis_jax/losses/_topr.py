"""TOPR: importance weights for the failures only."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import as_segment_ids, check_choice
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import clamp_log, difference
from tis_jax.numerics.units import sequence_sum

LEVELS = ("sequence", "token")


def topr(
  logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  level: str = "sequence",
) -> tuple[jax.Array, Metrics]:
  """TOPR: supervised where A > 0, truncated REINFORCE where A <= 0.

  With `r = pi / mu`, of the whole sequence or of each token, and `sg` the
  stop-gradient:

    loss = -A sg(1 if A > 0 else min(r, 1)) logp

  A failure that the policy no longer commits (r near 0) stops pushing, which is what
  keeps off-policy negatives from running away; a success is learned at full weight
  however unlikely it has become.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    sampler_logp: `[B, T]` log-probs that the sampler gave its tokens.
    advantages: `[B, T]`, or `[B]`; rewards with the sign of success.
    mask: `[B, T]` bool or 0/1; None trains every token.
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
    level: "sequence" (the paper: the product over the sequence) or "token" (ROLL).

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or an unknown level.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.5], [0.5]]))
  >>> sampler_logp = jnp.log(jnp.array([[1.0], [1.0]]))  # ratio 1/2
  >>> loss, _ = topr(logp, sampler_logp, jnp.array([1.0, -1.0]))
  >>> loss.round(3).tolist()
  [[0.693], [-0.347]]

  References: Le Roux et al. 2025, arXiv:2503.14286.
  """
  check_choice("level", level, LEVELS)
  mask, advantages, logp, sampler_logp = policy_inputs(
    mask, advantages, logp=logp, sampler_logp=sampler_logp
  )
  segment_ids = as_segment_ids(segment_ids, logp.shape)
  log_ratio = difference(jax.lax.stop_gradient(logp), sampler_logp)
  decides = log_ratio
  if level == "sequence":
    decides = sequence_sum(log_ratio, mask, segment_ids)
  tapered = jnp.exp(jnp.minimum(clamp_log(decides), 0.0))
  weight = jnp.where(advantages > 0, 1.0, tapered)
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction((advantages <= 0) & (decides > 0), mask)
  }
  return -advantages * weight * logp, metrics
