"""What the estimators against a group's other answers share."""

import jax.numpy as jnp

from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.checks import as_group_ids, as_mask, check_choice, check_rank

SINGLETONS = ("zero", "raw")


def group_inputs(rewards, group_ids, baseline_mask, singleton):
  """Checks a group estimator's arrays: `(fp32 rewards, rows the baseline counts)`."""
  rewards = jnp.asarray(rewards)
  check_rank("rewards", rewards, "B")
  as_group_ids(group_ids, rewards.shape[0])
  if rewards.shape[0] == 1:
    raise ValueError(
      "a group baseline needs at least two rows and the batch has one: "
      "sample more answers a prompt, or subtract a baseline of your own"
    )
  check_choice("singleton", singleton, SINGLETONS)
  return as_float(rewards), as_mask(baseline_mask, rewards.shape, "baseline_mask")


def centre(rewards, baseline, counted):
  """`rewards - baseline`; a row left out of the baseline may be NaN and gives 0."""
  return jnp.where(counted | jnp.isfinite(rewards), rewards - baseline, 0.0)


def alone(advantage, rewards, count, counted, singleton):
  """What a row with nothing to compare with gets in the place of `advantage`."""
  if singleton == "raw":
    lonely = jnp.where(counted | jnp.isfinite(rewards), rewards, 0.0)
  else:
    lonely = jnp.zeros_like(rewards)
  return jnp.where(count > 1, advantage, lonely)
