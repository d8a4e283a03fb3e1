"""Estimators of conversations: a reward for each turn, and what each turn led to."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.advantages._baselines import SINGLETONS
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.checks import (
  as_group_ids,
  as_mask,
  check_choice,
  check_number,
  check_rank,
)
from tis_jax.numerics.groups import group_sum


def turn_grpo(
  turn_rewards: ArrayLike,
  turn_ids: ArrayLike,
  group_ids: ArrayLike,
  *,
  discount: float = 1.0,
  normalize: bool = True,
  epsilon: float = 1e-6,
  baseline_mask: ArrayLike | None = None,
  singleton: str = "zero",
) -> jax.Array:
  """GRPO turn by turn: each turn's rewards to go, against those of its siblings' turns.

    G_u = r_u + discount G_{u+1}
    A_u = (G_u - mean_group(G_u)) / (std_group(G_u) + epsilon)

  A turn is compared with the turns of the same number in its group's other rows, as far
  as these got there; every token of it gets its advantage. What a turn earned no longer
  counts in the turns behind it, as it does where a response has one advantage. With one
  turn a row this is `grpo`.

  Args:
    turn_rewards: `[B, U]`, of each turn in order; NaN behind the last.
    turn_ids: `[B, T]` int, which turn each token is of, -1 for none.
    group_ids: `[B]` integers; see `grpo`.
    discount: a turn, 0 to 1.
    normalize: divide by the standard deviation (n - 1); without it the advantage is in
      units of reward.
    epsilon: added to the standard deviation.
    baseline_mask: `[B]` bool, rows that count for the baseline; None counts all.
    singleton: a turn that no sibling got to has "zero", or the "raw" rewards to go.

  Returns:
    `[B, T]` fp32, 0 where `turn_ids` is -1.

  Raises:
    ValueError: a wrong shape or dtype, or an unknown choice.

  >>> nan = jnp.nan
  >>> rewards = jnp.array([[0.0, 1.0], [0.0, 0.0], [0.5, nan]])
  >>> turns = jnp.array([[0, -1, 1], [0, -1, 1], [0, 0, -1]])
  >>> same = jnp.zeros(3, jnp.int32)
  >>> turn_grpo(rewards, turns, same, normalize=False).tolist()
  [[0.5, 0.0, 0.5], [-0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]

  References: the returns of turns are those of Ding et al. 2025, arXiv:2511.14846
  (GTPO), the standardised rewards of a turn those of Wei et al. 2025,
  arXiv:2505.11821 (MT-GRPO).
  """
  check_choice("singleton", singleton, SINGLETONS)
  check_number("discount", discount, at_least=0, at_most=1)
  rewards, turn_ids = as_float(jnp.asarray(turn_rewards)), jnp.asarray(turn_ids)
  check_rank("turn_rewards", rewards, "BU")
  check_rank("turn_ids", turn_ids, "BT")
  rows = rewards.shape[0]
  if turn_ids.shape[0] != rows or not jnp.issubdtype(turn_ids.dtype, jnp.integer):
    raise ValueError(
      f"turn_ids must be [B, T] integers of {rows} rows, got "
      f"{turn_ids.dtype}{list(turn_ids.shape)}"
    )
  as_group_ids(group_ids, rows)
  baseline_rows = as_mask(baseline_mask, (rows,), "baseline_mask")
  held = ~jnp.isnan(rewards)
  to_go = _to_go(jnp.where(held, rewards, 0.0), discount)
  counted = held & baseline_rows[:, None]

  def mean_of(x):
    return group_sum(jnp.where(counted, x, 0.0), group_ids) / jnp.maximum(count, 1.0)

  count = group_sum(counted.astype(to_go.dtype), group_ids)
  mean = mean_of(to_go)
  # The mean of equal values comes out equal to them, see `group_mean`.
  advantage = to_go - (mean + mean_of(to_go - mean))
  if normalize:
    total = group_sum(jnp.where(counted, advantage**2, 0.0), group_ids)
    spread = jnp.sqrt(total / jnp.maximum(count - 1.0, 1.0))
    advantage = advantage / (spread + epsilon)
  lonely = to_go if singleton == "raw" else jnp.zeros_like(to_go)
  advantage = jnp.where(held, jnp.where(count > 1, advantage, lonely), 0.0)
  found = jnp.take_along_axis(advantage, jnp.maximum(turn_ids, 0), axis=1)
  return jax.lax.stop_gradient(jnp.where(turn_ids >= 0, found, 0.0))


def _to_go(rewards, discount):
  """`[B, U]`: of each turn on; U is small."""
  columns, later = [], jnp.zeros_like(rewards[:, 0])
  for turn in reversed(range(rewards.shape[1])):
    later = rewards[:, turn] + discount * later
    columns.append(later)
  return jnp.stack(columns[::-1], axis=1)
