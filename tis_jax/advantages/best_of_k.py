"""Advantages for the best of k answers instead of the average one."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.advantages._baselines import group_inputs
from tis_jax.numerics.groups import group_count, group_mean, group_sum, max_of_others


def pass_at_k(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  k: int,
  *,
  threshold: float = 0.5,
  baseline_mask: ArrayLike | None = None,
) -> jax.Array:
  """Pass@k training: the advantage of a row averaged over every set of k it is in.

  Of the n answers to a prompt m fail. Every set of k answers succeeds if one of them
  does; with `mean = 1 - C(m, k) / C(n, k)` and `std = sqrt(mean (1 - mean))` over sets:

    success   (1 - mean) / std
    failure   (1 - C(m - 1, k - 1) / C(n - 1, k - 1) - mean) / std

  A closed form: no sets are drawn.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; rows with equal ids answer the same prompt.
    k: answers a set, a Python int of at least 1.
    threshold: a reward above it is a success.
    baseline_mask: `[B]` bool, the rows that count; None counts all. A row left out gets
      0.

  Returns:
    `[B]` fp32 advantages; 0 in groups of fewer than k rows, and where every set
    succeeds or every set fails.

  Raises:
    ValueError: a wrong shape or dtype, a batch of one row, k below 1 or above the
      batch's rows.

  >>> import jax.numpy as jnp
  >>> rewards, ids = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4, jnp.int32)
  >>> pass_at_k(rewards, ids, 2).round(3).tolist()
  [1.0, -0.333, -0.333, -0.333]

  References: Chen et al. 2025, arXiv:2508.10751, section 2.4.
  """
  if k < 1:
    raise ValueError(f"k must be at least 1, got {k}")
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, "zero")
  if k > rewards.shape[0]:
    raise ValueError(f"k is {k}, and the batch has only {rewards.shape[0]} rows")
  success = (rewards > threshold) & counted
  count = group_count(group_ids, counted)
  failures = count - group_sum(success.astype(jnp.float32), group_ids, counted)
  mean = 1.0 - _all_fail(failures, count, k)
  std = jnp.sqrt(mean * (1.0 - mean))
  with_failure = 1.0 - _all_fail(failures - 1.0, count - 1.0, k - 1)
  outcome = jnp.where(success, 1.0, with_failure)
  learns = counted & (count >= k) & (std > 0)
  return jnp.where(learns, (outcome - mean) / jnp.where(learns, std, 1.0), 0.0)


def best_of_group(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  normalize: bool = True,
  epsilon: float = 1e-6,
  baseline_mask: ArrayLike | None = None,
) -> jax.Array:
  """The lead of a group's best row over its second best; 0 for all the others.

    (max - second) / (std_group + epsilon)

  verl calls this the pass@k form of GRPO. Rows that tie for the best get 0.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; rows with equal ids answer the same prompt.
    normalize: divide by the unbiased standard deviation.
    epsilon: added to the standard deviation.
    baseline_mask: `[B]` bool, the rows that count; None counts all. A row left out gets
      0.

  Returns:
    `[B]` fp32 advantages; 0 in a group of one.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> rewards, ids = jnp.array([1.0, 4.0, 2.0]), jnp.zeros(3, jnp.int32)
  >>> best_of_group(rewards, ids, normalize=False).tolist()
  [0.0, 2.0, 0.0]

  References: arXiv:2503.19595; verl's `grpo_passk`.
  """
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, "zero")
  rewards = jnp.where(counted, rewards, 0.0)
  second = max_of_others(rewards, group_ids, counted)
  has_rival = counted & jnp.isfinite(second)
  lead = jnp.where(has_rival, jnp.maximum(rewards - second, 0.0), 0.0)
  if not normalize:
    return lead
  centred = rewards - group_mean(rewards, group_ids, counted)
  count = group_count(group_ids, counted)
  variance = group_sum(centred**2, group_ids, counted) / jnp.maximum(count - 1.0, 1.0)
  return lead / (jnp.sqrt(variance) + epsilon)


def _all_fail(failures, count, k):
  """`C(failures, k) / C(count, k)`: the chance that a set of k holds no success."""
  chance = jnp.ones_like(count)
  for i in range(k):
    chance *= jnp.maximum(failures - i, 0.0) / jnp.maximum(count - i, 1.0)
  return chance
