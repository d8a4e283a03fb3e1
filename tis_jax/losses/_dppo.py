"""DPPO: a trust region on the divergence of probabilities, not on their ratio."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, policy_inputs
from tis_jax.losses._metrics import ratio_metrics
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.numerics.metrics import Metrics, fraction

DIVERGENCES = ("tv", "kl")
_EPSILON = 1e-8


def dppo(
  logp: ArrayLike,
  sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  divergence: str = "tv",
  low: float = 0.2,
  high: float = 0.2,
  ratio_high: float = 20.0,
) -> tuple[jax.Array, Metrics]:
  """DPPO: REINFORCE on `pi / mu`, cut off where the token has moved too far already.

  With `r = exp(logp - sampler_logp)`, `inside` what `dppo_mask` says and `sg` the
  stop-gradient:

    loss = -A inside sg(min(r, ratio_high)) logp

  A ratio over-punishes rare tokens (a change of 1e-4 in probability is a ratio of 2 at
  p = 1e-4) and under-punishes common ones; the divergence treats both alike.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    sampler_logp: `[B, T]` log-probs that the sampler gave its tokens.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.
    divergence: "tv" (difference of the token's probability) or "kl" (between the two
      Bernoulli distributions "this token or another", in nats).
    low: bound on the divergence where A <= 0.
    high: bound on the divergence where A > 0. About 0.2 for "tv", 0.05 for "kl".
    ratio_high: cap on the ratio.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, an unknown divergence, a bound out of range.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([[0.9, 0.9]]))
  >>> sampler_logp = jnp.log(jnp.array([[0.8, 0.3]]))  # the second moved by 0.6
  >>> dppo(logp, sampler_logp, jnp.array([1.0]))[0].round(3).tolist()
  [[0.119, 0.0]]

  References: arXiv:2602.04879; verl's `dppo_tv` and `dppo_kl`, SkyRL's `dppo`.
  """
  check_number("ratio_high", ratio_high, above=0)
  mask, advantages, logp, sampler_logp = policy_inputs(
    mask, advantages, logp=logp, sampler_logp=sampler_logp
  )
  inside = dppo_mask(
    logp, sampler_logp, advantages, divergence=divergence, low=low, high=high
  )
  log_ratio = clamped_log_ratio(jax.lax.stop_gradient(logp), sampler_logp)
  weight = jnp.where(inside, jnp.minimum(jnp.exp(log_ratio), ratio_high), 0.0)
  metrics = ratio_metrics(log_ratio, mask) | {"policy/clipped": fraction(~inside, mask)}
  return -advantages * weight * logp, metrics


def dppo_mask(
  logp: ArrayLike,
  anchor_logp: ArrayLike,
  advantages: ArrayLike,
  *,
  divergence: str = "tv",
  low: float = 0.2,
  high: float = 0.2,
) -> jax.Array:
  """Which tokens DPPO trains: those whose update would not carry them further out.

  Where A > 0 a token trains while its divergence upwards is at most `high`, where
  A <= 0 while its divergence downwards is at most `low`. Moves in the direction
  opposite to the update are never cut. All three arrays are `[B, T]`; so is the bool
  returned.

  >>> import jax.numpy as jnp
  >>> logp, anchor = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.5, 0.5]]))
  >>> dppo_mask(logp, anchor, jnp.array([[1.0, 1.0]])).tolist()
  [[False, True]]
  """
  check_choice("divergence", divergence, DIVERGENCES)
  check_number("low", low, at_least=0)
  check_number("high", high, at_least=0)
  rise = jnp.exp(logp) - jnp.exp(anchor_logp)
  if divergence == "tv":
    up, down = rise, -rise
  else:
    apart = _bernoulli_kl(anchor_logp, logp)
    up, down = jnp.where(rise > 0, apart, 0.0), jnp.where(rise < 0, apart, 0.0)
  return jnp.where(jnp.asarray(advantages) > 0, up <= high, down <= low)


def _bernoulli_kl(logp, other_logp):
  """KL between "this token or another" under `logp` and under `other_logp`."""
  # Rounding can lift the log-prob of a near-certain token above 0.
  logp, other_logp = jnp.minimum(logp, 0.0), jnp.minimum(other_logp, 0.0)
  rest, other_rest = -jnp.expm1(logp), -jnp.expm1(other_logp)
  log_rest = jnp.log((rest + _EPSILON) / (other_rest + _EPSILON))
  return jnp.exp(logp) * (logp - other_logp) + rest * log_rest
