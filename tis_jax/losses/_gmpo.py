"""GMPO: the geometric mean of clipped token ratios."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import check_clip, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import as_segment_ids
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import clamp_log, clip_within, difference
from tis_jax.numerics.units import sequence_mean


def gmpo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  clip_low: float = 0.4,
  clip_high: float = 0.4,
) -> tuple[jax.Array, Metrics]:
  """GMPO: one geometric-mean ratio a sequence, each token clipped before the mean.

  With `d = logp - old_logp`, pessimistically clipped by the sign of the advantage
  (`min(d, clip_high)` where A > 0, `max(d, -clip_low)` where A < 0):

    loss = -mean_t(A) exp(mean_t(clipped d))

  Every token holds its sequence's loss: aggregate with "sequence_mean".

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B]`, or `[B, T]`, of which the mean counts.
    mask: `[B, T]` bool or 0/1, the tokens the means are taken over; None is all.
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
    clip_low: lower bound of a token's log-ratio is `-clip_low`, in nats.
    clip_high: upper bound of a token's log-ratio, in nats.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a clip range that holds no ratio.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[1.0, -0.4]])  # the first is clipped to 0.4, the mean is 0
  >>> gmpo(logp, jnp.zeros((1, 2)), jnp.array([2.0]))[0].tolist()
  [[-2.0, -2.0]]

  References: Zhao et al. 2025, arXiv:2507.20673.
  """
  check_clip(clip_low, clip_high)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  segment_ids = as_segment_ids(segment_ids, logp.shape)
  log_ratio = difference(logp, old_logp)
  bounded = clip_within(log_ratio, -clip_low, clip_high)
  sign = jnp.sign(advantages)
  pessimistic = sign * jnp.minimum(sign * log_ratio, sign * bounded)
  ratio = jnp.exp(clamp_log(sequence_mean(pessimistic, mask, segment_ids)))
  advantage = sequence_mean(advantages, mask, segment_ids)
  metrics = ratio_metrics(log_ratio, mask) | {
    "policy/clipped": fraction(sign * pessimistic < sign * log_ratio, mask)
  }
  return jnp.where(mask, -advantage * ratio, 0.0), metrics
