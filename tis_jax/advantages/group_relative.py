"""Outcome advantages against the other answers to the same prompt."""

import jax.numpy as jnp

from tis_jax.advantages.groups import group_count, group_mean, group_sum

SINGLETONS = ("zero", "raw")


def grpo(
  rewards,
  group_ids,
  *,
  normalize=True,
  epsilon=1e-6,
  baseline_mask=None,
  singleton="zero",
):
  """GRPO: `(r - mean_group) / (std_group + epsilon)`.

  The standard deviation is the unbiased one (n - 1), as in the peers.

  Args:
    rewards: `[B]` outcome rewards.
    group_ids: `[B]` integers; rows with equal ids answer the same prompt. Groups may
      be ragged, interleaved and sharded.
    normalize: divide by the standard deviation. It up-weights prompts that are nearly
      solved or nearly hopeless; without it this is Dr. GRPO.
    epsilon: added to the standard deviation.
    baseline_mask: `[B]` bool, the rows that mean and std are taken over: leave padding
      out, and rejected sequences too if they should not move their siblings' baseline.
      None keeps every row in. A row left out may hold NaN; its own advantage is still
      measured against the rows kept (0 if it is NaN).
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
  rewards, kept = prepare(rewards, group_ids, baseline_mask, singleton)
  count = group_count(group_ids, kept)
  centred = centre(rewards, group_mean(rewards, group_ids, kept), kept)
  if normalize:
    variance = group_sum(centred**2, group_ids, kept) / jnp.maximum(count - 1.0, 1.0)
    scaled = centred / (jnp.sqrt(variance) + epsilon)
  else:
    scaled = centred
  return alone(scaled, rewards, count, kept, singleton)


def dr_grpo(rewards, group_ids, *, baseline_mask=None, singleton="zero"):
  """Dr. GRPO: `r - mean_group`, without the division that biases by difficulty.

  Arguments and errors are those of `grpo`. Pair it with the aggregation
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


def rloo(rewards, group_ids, *, baseline_mask=None, singleton="zero"):
  """RLOO: the reward less the mean of the *other* rows of its group.

  For n rows that is `(r - mean_group) n / (n - 1)`: the baseline is independent of the
  row, so the gradient is unbiased at any group size. Arguments and errors are those of
  `grpo`.

  >>> import jax.numpy as jnp
  >>> rloo(jnp.array([1.0, 0.0, 1.0, 2.0]), jnp.array([5, 5, 9, 5])).tolist()
  [0.0, -1.5, 0.0, 1.5]

  References: Ahmadian et al. 2024, arXiv:2402.14740.
  """
  rewards, kept = prepare(rewards, group_ids, baseline_mask, singleton)
  # A row that the baseline leaves out has all the kept rows as its others.
  others = group_count(group_ids, kept) - kept
  total = group_sum(rewards, group_ids, kept) - jnp.where(kept, rewards, 0.0)
  advantage = centre(rewards, total / jnp.maximum(others, 1.0), kept)
  return alone(advantage, rewards, others + 1.0, kept, singleton)


def prepare(rewards, group_ids, baseline_mask, singleton):
  """Checks the arrays and returns fp32 rewards with the rows the baseline keeps."""
  rewards = jnp.asarray(rewards)
  if rewards.ndim != 1 or rewards.shape != jnp.shape(group_ids):
    raise ValueError(
      f"rewards and group_ids must both be [B], got {rewards.shape} and "
      f"{jnp.shape(group_ids)}"
    )
  if rewards.shape[0] == 1:
    raise ValueError(
      "a group baseline needs at least two rows, the batch has one; "
      "sample more answers a prompt or use rewards less a baseline of your own"
    )
  if singleton not in SINGLETONS:
    raise ValueError(f"singleton must be one of {SINGLETONS}, got {singleton!r}")
  if baseline_mask is None:
    kept = jnp.ones(rewards.shape, bool)
  elif jnp.shape(baseline_mask) == rewards.shape:
    kept = jnp.asarray(baseline_mask) != 0
  else:
    raise ValueError(
      f"baseline_mask must be [B] = {rewards.shape}, got {jnp.shape(baseline_mask)}"
    )
  return rewards.astype(jnp.float32), kept


def centre(rewards, baseline, kept):
  """`rewards - baseline`; a row left out of the baseline may be NaN and gives 0."""
  return jnp.where(kept | jnp.isfinite(rewards), rewards - baseline, 0.0)


def alone(advantage, rewards, count, kept, singleton):
  """What a row with no sibling to compare with gets instead of `advantage`."""
  if singleton == "zero":
    lonely = 0.0
  else:
    lonely = jnp.where(kept | jnp.isfinite(rewards), rewards, 0.0)
  return jnp.where(count > 1, advantage, lonely)
