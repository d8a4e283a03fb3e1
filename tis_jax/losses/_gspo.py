"""Losses on the length-normalised ratio of whole sequences: GSPO and LUSPO."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import check_clip, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.losses._ppo import clipped_surrogate
from tis_jax.numerics.checks import as_segment_ids
from tis_jax.numerics.metrics import Metrics, fraction
from tis_jax.numerics.ratios import clamp_log, difference
from tis_jax.numerics.units import sequence_length, sequence_mean


def gspo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
) -> tuple[jax.Array, Metrics]:
  """GSPO: PPO's surrogate on one ratio a sequence, given to each of its tokens.

  With `s = exp(mean_t (logp - old_logp))` over the sequence:

    loss = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high))

  Every token holds its sequence's loss, so "sequence_mean" is the aggregation that
  GSPO means. The gradient of one token's loss reaches all tokens of its sequence:
  where tokens have weights or advantages of their own, use `gspo_token`.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    old_logp: `[B, T]` log-probs at the start of the update (the sampler's in bypass).
    advantages: `[B]`, or `[B, T]`.
    mask: `[B, T]` bool or 0/1, the tokens that `s` is taken over; None is all.
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
    clip_low: width of the range below 1. Sequence ratios stay close to 1, hence the
      paper's range, hundreds of times narrower than PPO's.
    clip_high: width of the range above 1.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a clip range that holds no ratio.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[2.0, 0.5]]))  # the two ratios cancel
  >>> gspo(logp, jnp.zeros((1, 2)), jnp.array([1.0]))[0].tolist()
  [[-1.0, -1.0]]

  References: Zheng et al. 2025, arXiv:2507.18071, equation 5 and section 5.1.
  """
  mask, advantages, log_ratio, _ = _sequence_ratio(
    logp, old_logp, advantages, mask, segment_ids, clip_low, clip_high
  )
  return _surrogate(log_ratio, advantages, mask, clip_low, clip_high)


def gspo_token(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
) -> tuple[jax.Array, Metrics]:
  """GSPO-token: the value of the sequence's ratio, the gradient of the token's own.

  With `s` as in `gspo` and `sg` the stop-gradient, the ratio of token t is
  `sg(s) exp(logp_t - sg(logp_t))`. Value and, for one advantage a sequence, gradient
  under "sequence_mean" equal `gspo`; but advantages, weights and rejections act on
  the tokens they belong to. This is the form verl and SkyRL run.

  Arguments, returns and errors are those of `gspo`.

  >>> import jax, jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[2.0, 0.5]]))
  >>> loss = lambda x: gspo_token(x, jnp.zeros((1, 2)), jnp.array([1.0]))[0].sum()
  >>> jax.grad(loss)(logp).tolist()
  [[-1.0, -1.0]]

  References: Zheng et al. 2025, arXiv:2507.18071, equation 13.
  """
  mask, advantages, log_ratio, logp = _sequence_ratio(
    logp, old_logp, advantages, mask, segment_ids, clip_low, clip_high
  )
  log_ratio = jax.lax.stop_gradient(log_ratio) + logp - jax.lax.stop_gradient(logp)
  return _surrogate(log_ratio, advantages, mask, clip_low, clip_high)


def luspo(
  logp: ArrayLike,
  old_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  segment_ids: ArrayLike | None = None,
  clip_low: float = 2e-3,
  clip_high: float = 2.5e-3,
) -> tuple[jax.Array, Metrics]:
  """LUSPO: `gspo` times the length of the sequence.

  GSPO's mean over tokens hands short sequences a larger gradient a token; the factor
  takes that bias out. Aggregate with "sequence_mean".

  Arguments, returns and errors are those of `gspo`.

  >>> import jax.numpy as jnp
  >>> token_loss, _ = luspo(jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.array([1.0]))
  >>> token_loss.tolist()
  [[-3.0, -3.0, -3.0]]

  References: arXiv:2602.05261; ranges as in TRL.
  """
  mask, advantages, log_ratio, _ = _sequence_ratio(
    logp, old_logp, advantages, mask, segment_ids, clip_low, clip_high
  )
  token_loss, metrics = _surrogate(log_ratio, advantages, mask, clip_low, clip_high)
  return token_loss * sequence_length(mask, segment_ids), metrics


def _sequence_ratio(logp, old_logp, advantages, mask, segment_ids, clip_low, clip_high):
  check_clip(clip_low, clip_high)
  mask, advantages, logp, old_logp = policy_inputs(
    mask, advantages, logp=logp, old_logp=old_logp
  )
  segment_ids = as_segment_ids(segment_ids, logp.shape)
  log_ratio = clamp_log(sequence_mean(difference(logp, old_logp), mask, segment_ids))
  return mask, advantages, log_ratio, logp


def _surrogate(log_ratio, advantages, mask, clip_low, clip_high):
  ratio = jnp.exp(log_ratio)
  token_loss, clipped, _ = clipped_surrogate(ratio, advantages, clip_low, clip_high)
  metrics = ratio_metrics(log_ratio, mask) | {"policy/clipped": fraction(clipped, mask)}
  # Advantages are 0 off the mask, so the loss already is.
  return token_loss, metrics
