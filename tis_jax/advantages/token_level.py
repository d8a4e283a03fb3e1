"""Estimators that whiten over tokens, mix rewards, or need more than an outcome."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.advantages._baselines import SINGLETONS
from tis_jax.advantages.group_relative import dr_grpo, grpo
from tis_jax.advantages.returns import outcome_on_last_token, rewards_to_go, whiten
from tis_jax.numerics.checks import (
  as_floats,
  as_mask,
  check_choice,
  check_rank,
  per_token,
)
from tis_jax.numerics.groups import group_sum


def reinforce_plus_plus(
  rewards: ArrayLike, mask: ArrayLike, *, discount: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """REINFORCE++: discounted rewards to go, whitened over the batch's tokens.

  Args:
    rewards: `[B, T]` token rewards (usually with the KL penalty in them), or `[B]`
      outcome rewards.
    mask: `[B, T]` bool or 0/1.
    discount: per token, 0 to 1.

  Returns:
    `(advantages, returns)`, both `[B, T]` fp32, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> mask = jnp.ones((2, 1))
  >>> advantages, returns = reinforce_plus_plus(jnp.array([0.0, 2.0]), mask)
  >>> advantages.round(3).tolist(), returns.tolist()
  ([[-0.707], [0.707]], [[0.0], [2.0]])

  References: Hu et al. 2025, arXiv:2501.03262.
  """
  returns = rewards_to_go(rewards, mask, discount=discount)
  return whiten(returns, mask), returns


def reinforce_plus_plus_baseline(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  mask: ArrayLike,
  *,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """REINFORCE++ with a baseline: `r - mean_group`, whitened over the batch's tokens.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; see `grpo`.
    mask: `[B, T]` bool or 0/1, the tokens that mean and variance are taken over.
    baseline_mask: see `grpo`.
    singleton: see `grpo`.

  Returns:
    `[B, T]` fp32 advantages, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> rewards, ids = jnp.array([0.0, 2.0]), jnp.array([5, 5])
  >>> reinforce_plus_plus_baseline(rewards, ids, jnp.ones((2, 1))).round(3).tolist()
  [[-0.707], [0.707]]

  References: Hu et al. 2025, arXiv:2501.03262.
  """
  advantages = dr_grpo(
    rewards, group_ids, baseline_mask=baseline_mask, singleton=singleton
  )
  return whiten(advantages, mask)


def remax(rewards: ArrayLike, greedy_rewards: ArrayLike) -> jax.Array:
  """ReMax: the reward less that of the greedy answer to the same prompt.

  Args:
    rewards: `[B]` outcome rewards.
    greedy_rewards: `[B]` rewards of the greedy answer to each row's prompt.

  Returns:
    `[B]` fp32 advantages.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> remax(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])).tolist()
  [0.5, -0.5]

  References: Li et al. 2023, arXiv:2310.10505.
  """
  rewards = as_floats("rewards", rewards)
  if rewards.ndim != 1 or rewards.shape != jnp.shape(greedy_rewards):
    raise ValueError(
      f"rewards and greedy_rewards must both be [B], got {rewards.shape} and "
      f"{jnp.shape(greedy_rewards)}"
    )
  return rewards - as_floats("greedy_rewards", greedy_rewards)


def gdpo(
  named_rewards: ArrayLike,
  group_ids: ArrayLike,
  mask: ArrayLike,
  *,
  weights: ArrayLike | None = None,
  normalize: bool = True,
  epsilon: float = 1e-6,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """GDPO: GRPO of each reward on its own, then the weighted sum, whitened.

  Summing rewards before normalising lets the one with the widest spread drown the rest.

  Args:
    named_rewards: `[B, K]`, K rewards a row.
    group_ids: `[B]` integers; see `grpo`.
    mask: `[B, T]` bool or 0/1, the tokens that the whitening counts.
    weights: K numbers, or `[K]`; None is 1 each. In a run a number for each of the
      task's rewards, by name.
    normalize: see `grpo`.
    epsilon: see `grpo`.
    baseline_mask: see `grpo`.
    singleton: see `grpo`.

  Returns:
    `[B, T]` fp32 advantages, 0 where the mask is False.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> rewards = jnp.array([[0.0, 0.0], [1.0, 100.0], [1.0, 0.0], [0.0, 100.0]])
  >>> gdpo(rewards, jnp.zeros(4, jnp.int32), jnp.ones((4, 1)))[:, 0].round(2).tolist()
  [-1.22, 1.22, 0.0, 0.0]

  References: Liu et al. 2026, arXiv:2601.05242.
  """
  rewards = jnp.asarray(named_rewards)
  check_rank("named_rewards", rewards, "BK")
  kinds = rewards.shape[1]
  weights = jnp.ones(kinds) if weights is None else jnp.asarray(weights, jnp.float32)
  if weights.shape != (kinds,):
    raise ValueError(f"weights must be [K] = ({kinds},), got {weights.shape}")
  advantages = sum(
    weights[i]
    * grpo(
      rewards[:, i],
      group_ids,
      normalize=normalize,
      epsilon=epsilon,
      baseline_mask=baseline_mask,
      singleton=singleton,
    )
    for i in range(kinds)
  )
  return whiten(advantages, mask)


def optimal_token_baseline(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  mask: ArrayLike,
  logp: ArrayLike,
  sum_squared_probs: ArrayLike,
  *,
  weight: ArrayLike | None = None,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "raw",
  epsilon: float = 1e-8,
  align: str = "column",
) -> tuple[jax.Array, jax.Array]:
  """The variance-optimal baseline of each token position in a group.

  The squared norm of a token's score, over the logits, is
  `1 - 2 p_t + sum_v p_v^2`; with importance weights it counts with their square. Summed
  up to t it is the energy `W_t` of the path so far, and with `G_t` the reward to go:

    A_t = G_t - sum_group(G_t W_t) / (sum_group(W_t) + epsilon)

  A position is compared over the rows of the group that have a token there.

  Args:
    rewards: `[B, T]` token rewards, or `[B]` outcome rewards.
    group_ids: `[B]` integers; see `grpo`.
    mask: `[B, T]` bool or 0/1.
    logp: `[B, T]` log-probs of the policy being updated, in nats.
    sum_squared_probs: `[B, T]` sum over the vocabulary of its squared probabilities.
    weight: `[B, T]` importance weight of the correction, if it weights.
    baseline_mask: `[B]` bool, rows that count for the baseline; None counts all.
    singleton: at a position where no sibling has a token, the advantage is the "raw"
      reward to go (unbiased; the tail of the longest answer keeps learning) or "zero".
    epsilon: added to the denominator.
    align: what counts as the same position: the "column", or the "ordinal" of the token
      among its row's masked ones, for rows with the holes of tool calls in the mask.

  Returns:
    `(advantages, returns)`, both `[B, T]` fp32, without gradient, 0 where the mask is
    False.

  Raises:
    ValueError: a wrong shape or dtype, or an unknown choice.

  >>> import jax.numpy as jnp
  >>> logp, squared = jnp.log(jnp.full((2, 1), 0.5)), jnp.array([[0.5], [1.5]])
  >>> advantages, _ = optimal_token_baseline(
  ...   jnp.array([0.0, 4.0]), jnp.array([5, 5]), jnp.ones((2, 1)), logp, squared)
  >>> advantages.tolist()  # energies 0.5 and 1.5: the baseline is 3
  [[-3.0], [1.0]]

  References: Li et al. 2026, arXiv:2602.07078; verl's `optimal_token_baseline` and, by
  ordinal, `tir_optimal_token_baseline`.
  """
  check_choice("singleton", singleton, SINGLETONS)
  if align not in ("column", "ordinal"):
    raise ValueError(f"align must be 'column' or 'ordinal', got {align!r}")
  check_rank("mask", mask, "BT")
  shape = jnp.shape(mask)
  mask = as_mask(mask, shape)
  returns = rewards_to_go(outcome_on_last_token(rewards, mask), mask)
  logp = jnp.where(mask, per_token("logp", logp, shape), 0.0)
  squared = per_token("sum_squared_probs", sum_squared_probs, shape)
  energy = jnp.where(mask, 1.0 - 2.0 * jnp.exp(logp) + squared, 0.0)
  if weight is not None:
    weight = jnp.where(mask, per_token("weight", weight, shape), 0.0)
    energy = energy * weight**2
  path = jnp.where(mask, jnp.cumsum(energy, 1), 0.0)
  if align == "ordinal":
    # The masked tokens of each row move to its left, and the answer moves back.
    order = jnp.argsort(~mask, axis=1, stable=True)
    to_the_left = lambda x: jnp.take_along_axis(x, order, 1)
    back = lambda x: jnp.take_along_axis(x, jnp.argsort(order, axis=1), 1)
  else:
    to_the_left = back = lambda x: x
  counted, gains, path = (
    to_the_left(x) for x in (mask.astype(jnp.float32), returns * path, path)
  )
  siblings = back(group_sum(counted, group_ids, baseline_mask))
  baseline = back(
    group_sum(gains, group_ids, baseline_mask)
    / (group_sum(path, group_ids, baseline_mask) + epsilon)
  )
  lonely = returns if singleton == "raw" else jnp.zeros_like(returns)
  advantages = jnp.where(siblings > 1, returns - baseline, lonely)
  return jax.lax.stop_gradient((jnp.where(mask, advantages, 0.0), returns))
