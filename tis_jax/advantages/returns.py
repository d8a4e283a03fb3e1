"""Rewards to go, generalised advantages and whitening: estimators along the tokens."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.numerics.checks import as_mask, per_token


def rewards_to_go(
  rewards: ArrayLike, mask: ArrayLike | None = None, *, discount: float = 1.0
) -> jax.Array:
  """The discounted sum of rewards from each token on.

    G_t = r_t + discount G_{t+1}

  Tokens outside the mask (tool output, padding) are stepped over: their rewards do not
  count and no discount is taken for them, so a reward after an observation still
  reaches the tokens before it.

  Args:
    rewards: `[B, T]`, or `[B]`: outcome rewards, put on the last masked token.
    mask: `[B, T]` bool or 0/1; None takes every token. Needed with `[B]` rewards.
    discount: per token, 0 to 1.

  Returns:
    `[B, T]` fp32, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> mask = jnp.array([[1, 0, 1, 1, 0]])
  >>> rewards_to_go(jnp.array([8.0]), mask, discount=0.5).tolist()
  [[2.0, 0.0, 4.0, 8.0, 0.0]]
  """
  mask = _mask(rewards, mask)
  rewards = outcome_on_last_token(rewards, mask)
  decay = jnp.where(mask, discount, 1.0)
  return jnp.where(mask, _backward_recurrence(decay, rewards), 0.0)


def outcome_on_last_token(rewards, mask):
  """`[B, T]` token rewards under a mask, from `[B, T]` or from one outcome a row.

  >>> import jax.numpy as jnp
  >>> mask = jnp.array([[True, True, False]])
  >>> outcome_on_last_token(jnp.array([3.0]), mask).tolist()
  [[0.0, 3.0, 0.0]]
  """
  where = mask
  if jnp.ndim(rewards) == 1:
    remaining = jnp.cumsum(mask[:, ::-1], 1)[:, ::-1]
    where = mask & (remaining == 1)
  return jnp.where(where, per_token("rewards", rewards, mask.shape), 0.0)


def gae(
  rewards: ArrayLike,
  values: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  discount: float = 1.0,
  trace: float = 1.0,
  whitened: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation with a critic.

    delta_t = r_t + discount V_{t+1} - V_t
    A_t     = delta_t + discount trace A_{t+1},        return_t = A_t + V_t

  where t + 1 is the next token in the mask: tool output and padding are stepped over.

  Args:
    rewards: `[B, T]`, or `[B]`: outcome rewards, put on the last masked token.
    values: `[B, T]` the critic's values at the start of the update.
    mask: `[B, T]` bool or 0/1; None takes every token.
    discount: gamma, 0 to 1.
    trace: lambda, 0 to 1.
    whitened: `whiten` the advantages over the mask, as PPO commonly does and the peers
      do; the returns stay as they are.

  Returns:
    `(advantages, returns)`, both `[B, T]` fp32, without gradient, 0 where the mask is
    False.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> values = jnp.array([[0.5, 0.5]])
  >>> gae(jnp.array([[0.0, 1.0]]), values, discount=1.0, trace=0.5)[0].tolist()
  [[0.25, 0.5]]

  References: Schulman et al. 2015, arXiv:1506.02438.
  """
  mask = _mask(values, mask)
  rewards = outcome_on_last_token(rewards, mask)
  values = jnp.where(mask, per_token("values", values, mask.shape), 0.0)
  # The value of the next token in the mask: carried back over those that are not.
  carried = _backward_recurrence(jnp.where(mask, 0.0, 1.0), values)
  following = jnp.concatenate([carried[:, 1:], jnp.zeros_like(carried[:, :1])], 1)
  delta = jnp.where(mask, rewards + discount * following - values, 0.0)
  decay = jnp.where(mask, discount * trace, 1.0)
  advantages = jnp.where(mask, _backward_recurrence(decay, delta), 0.0)
  returns = jnp.where(mask, advantages + values, 0.0)
  if whitened:
    advantages = whiten(advantages, mask)
  return jax.lax.stop_gradient((advantages, returns))


def whiten(
  x: ArrayLike, mask: ArrayLike | None = None, *, epsilon: float = 1e-8
) -> jax.Array:
  """Subtracts the mean and divides by the standard deviation, over a mask.

    (x - mean) / sqrt(var + epsilon),   var unbiased (n - 1)

  Args:
    x: `[B, T]`, or `[B]` with a mask `[B, T]`: each row counts as often as it has
      tokens.
    mask: `[B, T]` bool or 0/1; None takes all.
    epsilon: added to the variance.

  Returns:
    `[B, T]` fp32, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> whiten(jnp.array([[1.0, 3.0, jnp.nan]]), jnp.array([[1, 1, 0]])).round(3).tolist()
  [[-0.707, 0.707, 0.0]]
  """
  mask = _mask(x, mask)
  x = jnp.where(mask, per_token("x", x, mask.shape), 0.0)
  count = mask.sum(dtype=jnp.float32)
  centred = jnp.where(mask, x - x.sum() / jnp.maximum(count, 1.0), 0.0)
  variance = (centred**2).sum() / jnp.maximum(count - 1.0, 1.0)
  return centred * jax.lax.rsqrt(variance + epsilon)


def _mask(x, mask):
  shape = jnp.shape(x) if mask is None else jnp.shape(mask)
  if len(shape) != 2:
    raise ValueError(f"the mask, or the array without one, must be [B, T], got {shape}")
  return as_mask(mask, shape)


def _backward_recurrence(decay, x):
  """`y_t = x_t + decay_t y_{t+1}` along the last axis, in log T steps."""

  def combine(later, earlier):
    later_decay, later_y = later
    decay, y = earlier
    return decay * later_decay, y + decay * later_y

  return jax.lax.associative_scan(combine, (decay, x), reverse=True, axis=1)[1]
