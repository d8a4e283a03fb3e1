"""Advantage estimators: against a group's other answers, and along the tokens.

Outcome estimators take `[B]` rewards and `[B]` group ids and return `[B]` advantages,
which every loss broadcasts over its tokens. Those that whiten, discount or compare
token positions return `[B, T]`. All take rewards of rows that a correction rejected as
they are, unless `baseline_mask` leaves them out.
"""

from collections.abc import Callable

from tis_jax.advantages.best_of_k import best_of_group as best_of_group
from tis_jax.advantages.best_of_k import pass_at_k as pass_at_k
from tis_jax.advantages.group_relative import dr_grpo as dr_grpo
from tis_jax.advantages.group_relative import gpg as gpg
from tis_jax.advantages.group_relative import grpo as grpo
from tis_jax.advantages.group_relative import maxrl as maxrl
from tis_jax.advantages.group_relative import opo as opo
from tis_jax.advantages.group_relative import rloo as rloo
from tis_jax.advantages.returns import gae as gae
from tis_jax.advantages.returns import rewards_to_go as rewards_to_go
from tis_jax.advantages.returns import whiten as whiten
from tis_jax.advantages.shaping import groups_of_rows as groups_of_rows
from tis_jax.advantages.shaping import has_variance as has_variance
from tis_jax.advantages.shaping import overlong_filter as overlong_filter
from tis_jax.advantages.shaping import soft_overlong_penalty as soft_overlong_penalty
from tis_jax.advantages.token_level import gdpo as gdpo
from tis_jax.advantages.token_level import (
  optimal_token_baseline as optimal_token_baseline,
)
from tis_jax.advantages.token_level import reinforce_plus_plus as reinforce_plus_plus
from tis_jax.advantages.token_level import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from tis_jax.advantages.token_level import remax as remax
from tis_jax.advantages.turn_level import turn_grpo as turn_grpo

ARGUMENTS = (
  "rewards",
  "group_ids",
  "mask",
  "lengths",
  "baseline_mask",
  "logp",
  "sum_squared_probs",
  "weight",
  "values",
  "greedy_rewards",
  "named_rewards",
  "turn_rewards",
  "turn_ids",
)
"""The arrays that a training step can hand to an estimator; the rest are settings."""

ESTIMATORS: dict[str, Callable] = {
  "best_of_group": best_of_group,
  "dr_grpo": dr_grpo,
  "gae": gae,
  "gdpo": gdpo,
  "gpg": gpg,
  "grpo": grpo,
  "maxrl": maxrl,
  "optimal_token_baseline": optimal_token_baseline,
  "opo": opo,
  "pass_at_k": pass_at_k,
  "reinforce_plus_plus": reinforce_plus_plus,
  "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
  "remax": remax,
  "rloo": rloo,
  "turn_grpo": turn_grpo,
}
"""Every estimator that a learner can feed, by the name that a config calls it."""
