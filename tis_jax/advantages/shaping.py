"""The sampling side of DAPO: which groups and tokens train, and what rewards become.

`soft_overlong_penalty`, `overlong_filter` and `has_variance` are functions of arrays
that run inside jit, on any mesh. `groups_of_rows` chooses rows, so that the size of its
result depends on the data: it runs on the host, in numpy, between sampling and the
update.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tis_jax.numerics.checks import as_group_ids, as_mask, check_rank
from tis_jax.numerics.groups import max_of_others


def soft_overlong_penalty(
  lengths: ArrayLike, *, max_length: int, buffer: int, factor: float = 1.0
) -> jax.Array:
  """What to add to the reward of a response that comes near the length limit.

    0                                              length <= max_length - buffer
    -factor (length - (max_length - buffer)) / buffer       up to max_length
    -factor                                                 from there on

  Add it after deciding which groups have variance: it is not a matter of correctness.

  Args:
    lengths: `[B]` tokens of each response.
    max_length: the limit, in tokens.
    buffer: width of the ramp below the limit, in tokens, 1 to max_length.
    factor: penalty at the limit.

  Returns:
    `[B]` fp32, 0 or negative.

  Raises:
    ValueError: a buffer that is not within the limit.

  >>> import jax.numpy as jnp
  >>> lengths = jnp.array([50, 85, 100, 120])
  >>> soft_overlong_penalty(lengths, max_length=100, buffer=20).tolist()
  [0.0, -0.25, -1.0, -1.0]

  References: DAPO, arXiv:2503.14476, equation 13.
  """
  if not 0 < buffer <= max_length:
    raise ValueError(
      f"buffer must be above 0 and at most max_length = {max_length}, got {buffer}"
    )
  over = jnp.asarray(lengths).astype(jnp.float32) - (max_length - buffer)
  return 0.0 - factor * jnp.clip(over / buffer, 0.0, 1.0)


def overlong_filter(mask: ArrayLike, truncated: ArrayLike) -> jax.Array:
  """Takes truncated responses out of the training mask.

  A response that was cut off at the limit has no reward of its own: its failure is the
  limit's. The filtered mask is the one that denominators should count.

  Args:
    mask: `[B, T]` bool or 0/1.
    truncated: `[B]` bool, responses that ended at the length limit.

  Returns:
    `[B, T]` bool.

  Raises:
    ValueError: a wrong shape.

  >>> import jax.numpy as jnp
  >>> overlong_filter(jnp.ones((2, 2), bool), jnp.array([False, True])).tolist()
  [[True, True], [False, False]]

  References: DAPO, arXiv:2503.14476, section 3.4.
  """
  if jnp.ndim(mask) != 2 or jnp.shape(truncated) != jnp.shape(mask)[:1]:
    raise ValueError(
      f"mask must be [B, T] and truncated [B], got {jnp.shape(mask)} and "
      f"{jnp.shape(truncated)}"
    )
  return (jnp.asarray(mask) != 0) & (jnp.asarray(truncated) == 0)[:, None]


def has_variance(
  rewards: ArrayLike,
  group_ids: ArrayLike,
  *,
  tolerance: float = 1e-6,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Marks the rows whose group's rewards differ: those a group baseline can learn from.

  Use it as a row mask (zero-variance filter), or to choose groups (dynamic sampling).
  A group of one has no variance.

  Args:
    rewards: `[B]` outcome rewards, before any penalty for length.
    group_ids: `[B]` integers; rows with equal ids answer the same prompt.
    tolerance: largest difference within a group that counts as none.
    where: `[B]` bool, rows that count; None counts all. Rows left out are not marked.

  Returns:
    `[B]` bool.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> rewards, ids = jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.array([4, 4, 7, 7])
  >>> has_variance(rewards, ids).tolist()
  [False, False, True, True]

  References: DAPO, arXiv:2503.14476, section 3.2; SkyRL's `zero_variance_filter`.
  """
  rewards = jnp.asarray(rewards)
  check_rank("rewards", rewards, "B")
  as_group_ids(group_ids, rewards.shape[0])
  rewards = rewards.astype(jnp.float32)
  counted = as_mask(where, rewards.shape, "where")
  rewards = jnp.where(counted, rewards, 0.0)
  highest = jnp.maximum(rewards, max_of_others(rewards, group_ids, counted))
  lowest = -jnp.maximum(-rewards, max_of_others(-rewards, group_ids, counted))
  return counted & (highest - lowest > tolerance)


def groups_of_rows(
  marked: ArrayLike, group_ids: ArrayLike, *, groups: int | None = None
) -> np.ndarray:
  """Dynamic sampling by filter: the rows of the groups to train on, in order.

  A group is taken if all its rows are marked. Sample on, and append, until there are
  enough; what is left over belongs to the next batch.

  Args:
    marked: `[B]` bool, such as `has_variance` returns.
    group_ids: `[B]` integers.
    groups: at most so many groups, the first ones; None takes all.

  Returns:
    int64 row numbers, in ascending order.

  Raises:
    ValueError: a wrong shape.

  >>> groups_of_rows([True, True, False, False, True], [4, 4, 7, 7, 9], groups=1)
  array([0, 1])

  References: DAPO, arXiv:2503.14476, section 3.2; SkyRL's `filter`.
  """
  marked, ids = np.asarray(marked) != 0, np.asarray(group_ids)
  if ids.ndim != 1 or marked.shape != ids.shape:
    raise ValueError(
      f"marked and group_ids must both be [B], got {marked.shape} and {ids.shape}"
    )
  values, first = np.unique(ids, return_index=True)
  in_order = values[np.argsort(first)]
  good = in_order[~np.isin(in_order, ids[~marked])]
  return np.flatnonzero(np.isin(ids, good if groups is None else good[:groups]))
