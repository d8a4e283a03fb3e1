"""Outcome advantages against the other answers to the same prompt."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.advantages._baselines import alone, centre, group_inputs
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.groups import group_count, group_mean, group_sum


def grpo(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  normalize: bool = True,
  epsilon: float = 1e-6,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """GRPO: `(r - mean_group) / (std_group + epsilon)`.

  The standard deviation is the unbiased one (n - 1), as in the peers.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; rows with equal ids answer the same prompt. Groups may
      be ragged, interleaved and sharded.
    normalize: divide by the standard deviation. It up-weights prompts that are nearly
      solved or nearly hopeless; without it this is Dr. GRPO.
    epsilon: added to the standard deviation.
    baseline_mask: `[B]` bool, the rows that mean and std are taken over. None counts
      every row, rejected sequences included; pass `mask.any(-1)` of what a correction
      left to stop them from moving their siblings' baseline, and leave padding rows out
      likewise. A row left out may hold NaN; its own advantage is still measured
      against the rows counted (0 if it is NaN).
    singleton: a row with no sibling gets "zero" (nothing to compare with, nothing to
      learn) or its "raw" reward (verl and SkyRL).

  Returns:
    `[B]` fp32 advantages.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> ids = jnp.array([5, 5, 9, 5])
  >>> grpo(jnp.array([1.0, 0.0, 1.0, 2.0]), ids).round(3).tolist()
  [0.0, -1.0, 0.0, 1.0]

  References: Shao et al. 2024, arXiv:2402.03300.
  """
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, singleton)
  count = group_count(group_ids, counted)
  advantage = centre(rewards, group_mean(rewards, group_ids, counted), counted)
  if normalize:
    variance = group_sum(advantage**2, group_ids, counted) / jnp.maximum(
      count - 1.0, 1.0
    )
    advantage = advantage / (jnp.sqrt(variance) + epsilon)
  return alone(advantage, rewards, count, counted, singleton)


def dr_grpo(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """Dr. GRPO: `r - mean_group`, without the division that biases by difficulty.

  Arguments, returns and errors are those of `grpo`. Pair it with the aggregation
  "sequence_sum_constant", which leaves out GRPO's other bias, by length.

  >>> import jax.numpy as jnp
  >>> dr_grpo(jnp.array([1.0, 0.0, 1.0, 2.0]), jnp.array([5, 5, 9, 5])).tolist()
  [0.0, -1.0, 0.0, 1.0]

  References: Liu et al. 2025, arXiv:2503.20783.
  """
  return grpo(
    rewards,
    group_ids,
    normalize=False,
    baseline_mask=baseline_mask,
    singleton=singleton,
  )


def rloo(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """RLOO: the reward less the mean of the *other* rows of its group.

  For n rows that is `(r - mean_group) n / (n - 1)`: the baseline is independent of the
  row, so the gradient is unbiased at any group size. Arguments, returns and errors are
  those of `grpo`.

  >>> import jax.numpy as jnp
  >>> rloo(jnp.array([1.0, 0.0, 1.0, 2.0]), jnp.array([5, 5, 9, 5])).tolist()
  [0.0, -1.5, 0.0, 1.5]

  References: Ahmadian et al. 2024, arXiv:2402.14740.
  """
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, singleton)
  # A row that the baseline leaves out has all the counted rows as its others.
  others = group_count(group_ids, counted) - counted
  total = group_sum(rewards, group_ids, counted) - jnp.where(counted, rewards, 0.0)
  advantage = centre(rewards, total / jnp.maximum(others, 1.0), counted)
  return alone(advantage, rewards, others + 1.0, counted, singleton)


def opo(
  rewards: ArrayLike,
  lengths: ArrayLike,
  group_ids: ArrayLike,
  *,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """OPO: the reward less the group's mean weighted by length.

    baseline = sum(length r) / sum(length)

  The variance-optimal baseline if the squared norm of a sequence's gradient grows with
  its length.

  Args:
    rewards: `[B]` outcome rewards.
    lengths: `[B]` tokens of each response, 0 or more.
    group_ids: `[B]` integers; see `grpo`.
    baseline_mask: see `grpo`.
    singleton: see `grpo`.

  Returns:
    `[B]` fp32 advantages.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> opo(jnp.array([1.0, 0.0]), jnp.array([1, 3]), jnp.array([5, 5])).tolist()
  [0.75, -0.25]

  References: Hao et al. 2025, arXiv:2505.23585.
  """
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, singleton)
  if jnp.shape(lengths) != rewards.shape:
    raise ValueError(f"lengths must be [B] = {rewards.shape}, got {jnp.shape(lengths)}")
  lengths = jnp.asarray(lengths).astype(jnp.float32)
  weighted = jnp.where(counted, lengths * rewards, 0.0)
  total = group_sum(lengths, group_ids, counted)
  baseline = group_sum(weighted, group_ids, counted) / jnp.maximum(total, 1.0)
  advantage = centre(rewards, baseline, counted)
  return alone(advantage, rewards, group_count(group_ids, counted), counted, singleton)


def gpg(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  scale: float = 1.0,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """GPG: `alpha (r - mean_group) / scale`, with `alpha = rows / rows that can learn`.

  A group whose rewards are all equal gives no gradient and only dilutes the batch's
  mean; `alpha` undoes the dilution. It is the same number for every row.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; see `grpo`.
    scale: the paper's F_norm, above 0.
    baseline_mask: see `grpo`.
    singleton: see `grpo`.

  Returns:
    `[B]` fp32 advantages.

  Raises:
    ValueError: a wrong shape or dtype, a batch of one row, a scale not above 0.

  >>> import jax.numpy as jnp
  >>> gpg(jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.array([5, 5, 9, 9])).tolist()
  [1.0, -1.0, 0.0, 0.0]

  References: Chu et al. 2025, arXiv:2504.02546.
  """
  check_number("scale", scale, above=0)
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, singleton)
  advantage = centre(rewards, group_mean(rewards, group_ids, counted), counted)
  spread = group_sum(jnp.abs(advantage), group_ids, counted)
  learns = (counted & (spread > 0)).sum(dtype=jnp.float32)
  alpha = counted.sum(dtype=jnp.float32) / jnp.maximum(learns, 1.0)
  count = group_count(group_ids, counted)
  return alone(advantage * alpha / scale, rewards, count, counted, singleton)


def maxrl(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  epsilon: float = 1e-6,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """MaxRL: `(r - mean_group) / (mean_group + epsilon)`.

  For 0/1 rewards the division by the success rate turns the gradient of the expected
  reward into that of its logarithm: hard prompts weigh more.

  Args:
    rewards: `[B]` outcome rewards, 0 or more.
    group_ids: `[B]` integers; see `grpo`.
    epsilon: added to the mean. A group without success gives 0.
    baseline_mask: see `grpo`.
    singleton: see `grpo`.

  Returns:
    `[B]` fp32 advantages.

  Raises:
    ValueError: a wrong shape or dtype, or a batch of one row.

  >>> import jax.numpy as jnp
  >>> rewards, ids = jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([5, 5, 5, 5])
  >>> maxrl(rewards, ids).round(3).tolist()
  [3.0, -1.0, -1.0, -1.0]

  References: Tajwar et al. 2026, arXiv:2602.02710; SkyRL's `maxrl`.
  """
  rewards, counted = group_inputs(rewards, group_ids, baseline_mask, singleton)
  mean = group_mean(rewards, group_ids, counted)
  advantage = centre(rewards, mean, counted) / (mean + epsilon)
  return alone(advantage, rewards, group_count(group_ids, counted), counted, singleton)
