"""KL penalties against a reference policy: in the loss, or in the reward."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clamped_log_ratio, clean
from tis_jax.numerics.checks import as_mask, check_choice, check_number, per_token
from tis_jax.numerics.ratios import clamp_log, difference, k3, magnitude

KL_KINDS = ("k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+")


def kl_penalty(
  logp: ArrayLike, ref_logp: ArrayLike, kind: str = "k3", mask: ArrayLike | None = None
) -> jax.Array:
  """Estimates KL(policy || reference) from the tokens the policy sampled.

  With `d = logp - ref_logp`, per token:

    k1    d                 unbiased, can be negative
    k2    d^2 / 2           biased by the third order; as a loss, the KL's own gradient
    k3    exp(-d) - 1 + d   unbiased, never negative; as a loss, the gradient of the
                            opposite KL(reference || policy)
    abs   |d|               no estimate of a KL; a robust penalty

  As a loss k1 has gradient 0 on average: it only adds noise. The `+` forms have the
  value of their base and the gradient of k2 (straight-through), so that one number can
  be both reported and descended.

  Args:
    logp: `[B, T]` log-probs of the policy, in nats; carries the gradient.
    ref_logp: `[B, T]` log-probs of the reference.
    kind: one of `KL_KINDS`.
    mask: `[B, T]` bool or 0/1; None takes every token.

  Returns:
    `[B, T]` fp32 in nats, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype, or an unknown kind.

  >>> import jax.numpy as jnp
  >>> logp, ref_logp = jnp.array([[-1.0]]), jnp.array([[-2.0]])
  >>> [kl_penalty(logp, ref_logp, k).item() for k in ("k1", "k2", "k3")]
  [1.0, 0.5, 0.36787...]

  References: Schulman, "Approximating KL divergence", 2020; verl's `kl_penalty`.
  """
  _, logp, ref_logp = clean(mask, logp=logp, ref_logp=ref_logp)
  return _estimate(difference(logp, ref_logp), kind)


def weighted_kl_penalty(
  logp: ArrayLike,
  ref_logp: ArrayLike,
  anchor_logp: ArrayLike,
  kind: str = "k3",
  mask: ArrayLike | None = None,
) -> jax.Array:
  """KL(policy || reference) from tokens that another policy sampled: right gradients.

  With `r = exp(logp - anchor_logp)` and the estimate k of `kl_penalty`, both carrying
  gradient:

    r k

  Its expectation under the anchor is the KL at each prefix, and the gradient of that
  expectation is the KL's. For k3 the two terms of the gradient combine to
  `r d grad(logp)`, the low-variance form: no noise at d = 0. Without the weight k3
  pulls along the opposite KL, and off-policy tokens count as if sampled.

  Args:
    logp: `[B, T]` log-probs of the policy, in nats; carries the gradient.
    ref_logp: `[B, T]` log-probs of the reference.
    anchor_logp: `[B, T]` log-probs of the policy that the tokens came from: the
      sampler's, or the learner's at the start of the update.
    kind: "k1", "k2" or "k3". k2 keeps its bias.
    mask: `[B, T]` bool or 0/1; None takes every token.

  Returns:
    `[B, T]` fp32 in nats, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype, or a kind that the weight does not serve.

  >>> import jax, jax.numpy as jnp
  >>> zero = jnp.zeros((1, 1))
  >>> jax.grad(lambda x: weighted_kl_penalty(x, zero - 1.0, zero).sum())(zero).item()
  1.0

  References: DeepSeek-V3.2, arXiv:2512.02556; TRL's `use_bias_correction_kl`.
  """
  if kind not in ("k1", "k2", "k3"):
    raise ValueError(
      f"kind must be 'k1', 'k2' or 'k3' under a weight, got {kind!r}; "
      "a straight-through form already replaces the gradient"
    )
  mask, logp, ref_logp, anchor_logp = clean(
    mask, logp=logp, ref_logp=ref_logp, anchor_logp=anchor_logp
  )
  ratio = jnp.exp(clamped_log_ratio(logp, anchor_logp))
  return ratio * _estimate(difference(logp, ref_logp), kind)


def kl_in_reward(
  rewards: ArrayLike,
  logp: ArrayLike,
  ref_logp: ArrayLike,
  coefficient: ArrayLike,
  *,
  kind: str = "k1",
  mask: ArrayLike | None = None,
) -> jax.Array:
  """Token rewards less a KL penalty: `r - coefficient k`, without gradient.

  Args:
    rewards: `[B, T]` token rewards.
    logp: `[B, T]` log-probs of the policy that acted, in nats: `old_logp`.
    ref_logp: `[B, T]` log-probs of the reference.
    coefficient: scalar, traced or not; 0 or more.
    kind: one of `KL_KINDS`; k1 is the one that leaves the KL-regularised objective
      unbiased.
    mask: `[B, T]` bool or 0/1; None takes every token.

  Returns:
    `[B, T]` fp32, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype, an unknown kind, a negative coefficient.

  >>> import jax.numpy as jnp
  >>> rewards = jnp.array([[0.0, 1.0]])
  >>> logp, ref_logp = jnp.array([[-1.0, -1.0]]), jnp.array([[-3.0, -1.0]])
  >>> kl_in_reward(rewards, logp, ref_logp, 0.1).round(3).tolist()
  [[-0.2, 1.0]]
  """
  check_number("coefficient", coefficient, at_least=0)
  shape = jnp.shape(logp)
  penalty = kl_penalty(logp, ref_logp, kind, mask)
  rewards = jnp.where(as_mask(mask, shape), per_token("rewards", rewards, shape), 0.0)
  return jax.lax.stop_gradient(rewards - coefficient * penalty)


def adaptive_kl_coefficient(
  coefficient: ArrayLike,
  kl: ArrayLike,
  rows: ArrayLike,
  *,
  target: float = 0.1,
  horizon: float = 10000.0,
) -> jax.Array:
  """The next coefficient of a controller that steers the KL to a target.

    coefficient (1 + clip(kl / target - 1, -0.2, 0.2) rows / horizon)

  Args:
    coefficient: scalar, the one in use; keep it in the training state.
    kl: scalar, the KL just measured, in nats.
    rows: how many rows it was measured on.
    target: the KL to steer to, in nats, above 0.
    horizon: rows in which an error of 20 percent or more moves the coefficient by a
      factor of about 1.2, above 0.

  Returns:
    fp32 scalar.

  Raises:
    ValueError: a target or a horizon that is not above 0.

  >>> adaptive_kl_coefficient(0.1, kl=0.5, rows=1000).item()
  0.102

  References: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
  """
  check_number("target", target, above=0)
  check_number("horizon", horizon, above=0)
  error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -0.2, 0.2)
  return jnp.asarray(coefficient, jnp.float32) * (1.0 + error * rows / horizon)


def _estimate(d, kind):
  check_choice("kind", kind, KL_KINDS)
  if kind.endswith("+"):
    value = _estimate(jax.lax.stop_gradient(d), kind[:-1])
    slope = _estimate(d, "k2")
    return value + slope - jax.lax.stop_gradient(slope)
  if kind == "k1":
    return d
  if kind == "k2":
    return 0.5 * d**2
  if kind == "abs":
    return magnitude(d)
  return k3(-clamp_log(d))
