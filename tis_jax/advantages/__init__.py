"""Advantage estimators, over groups of answers and over tokens."""

from tis_jax.advantages.group_relative import dr_grpo, grpo, rloo
from tis_jax.advantages.groups import group_count, group_max, group_mean, group_sum

__all__ = [
  "dr_grpo",
  "group_count",
  "group_max",
  "group_mean",
  "group_sum",
  "grpo",
  "rloo",
]
