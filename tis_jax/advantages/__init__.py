"""Advantage estimators: against a group's other answers, and along the tokens.

Outcome estimators take `[B]` rewards and `[B]` group ids and return `[B]` advantages,
which every loss broadcasts over its tokens. Those that whiten, discount or compare
token positions return `[B, T]`. All take rewards of rows that a correction rejected as
they are, unless `baseline_mask` leaves them out.
"""

from tis_jax.advantages.group_relative import dr_grpo, gpg, grpo, maxrl, opo, rloo
from tis_jax.advantages.groups import (
  group_count,
  group_mean,
  group_sum,
  max_of_others,
)
from tis_jax.advantages.pass_at_k import best_of_group, pass_at_k
from tis_jax.advantages.returns import gae, rewards_to_go, whiten
from tis_jax.advantages.token_level import (
  gdpo,
  optimal_token_baseline,
  reinforce_plus_plus,
  reinforce_plus_plus_baseline,
  remax,
)

__all__ = [
  "best_of_group",
  "dr_grpo",
  "gae",
  "gdpo",
  "gpg",
  "group_count",
  "group_mean",
  "group_sum",
  "grpo",
  "max_of_others",
  "maxrl",
  "opo",
  "optimal_token_baseline",
  "pass_at_k",
  "reinforce_plus_plus",
  "reinforce_plus_plus_baseline",
  "remax",
  "rewards_to_go",
  "rloo",
  "whiten",
]
