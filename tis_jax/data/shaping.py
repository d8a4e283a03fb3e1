"""The sampling side of DAPO: which groups and tokens train, and what rewards become.

`soft_overlong_penalty`, `overlong_filter`, `has_variance` and `shape_rewards` are
functions of arrays that run inside jit, on any mesh. `keep_groups` and `replace_groups`
choose rows, so their results have sizes that depend on the data: they run on the host,
in numpy, between sampling and the update.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tis_jax.advantages.groups import check_group_ids, max_of_others


def shape_rewards(
  rewards: ArrayLike,
  *,
  scale: float = 1.0,
  shift: float = 0.0,
  low: float | None = None,
  high: float | None = None,
) -> jax.Array:
  """`clip(scale rewards + shift, low, high)`; a bound of None is left out.

  Args:
    rewards: array of any shape.
    scale: factor.
    shift: added after the factor.
    low: lower bound of the result.
    high: upper bound of the result.

  Returns:
    fp32 array in the shape of rewards.

  Raises:
    ValueError: low above high.

  >>> import jax.numpy as jnp
  >>> shape_rewards(jnp.array([0.0, 1.0, 5.0]), scale=2.0, high=3.0).tolist()
  [0.0, 2.0, 3.0]
  """
  if low is not None and high is not None and low > high:
    raise ValueError(f"low must not exceed high, got {low} and {high}")
  shaped = scale * jnp.asarray(rewards, jnp.float32) + shift
  shaped = shaped if low is None else jnp.maximum(shaped, low)
  return shaped if high is None else jnp.minimum(shaped, high)


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
  if rewards.ndim != 1:
    raise ValueError(f"rewards must be [B], got shape {rewards.shape}")
  check_group_ids(group_ids, rewards.shape[0])
  rewards = rewards.astype(jnp.float32)
  kept = jnp.ones(rewards.shape, bool) if where is None else jnp.asarray(where) != 0
  rewards = jnp.where(kept, rewards, 0.0)
  highest = jnp.maximum(rewards, max_of_others(rewards, group_ids, kept))
  lowest = -jnp.maximum(-rewards, max_of_others(-rewards, group_ids, kept))
  return kept & (highest - lowest > tolerance)


def keep_groups(
  keep: ArrayLike, group_ids: ArrayLike, *, groups: int | None = None
) -> np.ndarray:
  """Dynamic sampling by filter: the rows of the groups to train on, in order.

  A group is kept if all its rows are marked. Sample on, and append, until there are
  enough; what is left over belongs to the next batch.

  Args:
    keep: `[B]` bool, such as `has_variance` returns.
    group_ids: `[B]` integers.
    groups: at most so many groups, the first ones; None takes all.

  Returns:
    int64 row numbers, in ascending order.

  Raises:
    ValueError: a wrong shape.

  >>> keep_groups([True, True, False, False, True], [4, 4, 7, 7, 9], groups=1).tolist()
  [0, 1]

  References: DAPO, arXiv:2503.14476, section 3.2; SkyRL's `filter`.
  """
  ids, good = _good_groups(keep, group_ids)
  return np.flatnonzero(np.isin(ids, good if groups is None else good[:groups]))


def replace_groups(
  keep: ArrayLike, group_ids: ArrayLike, rng: int | np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Dynamic sampling by replacement: rows of bad groups give way to rows of good ones.

  Each bad group takes the rows of a good one, drawn without replacement as long as
  there are enough. Sizes may differ, and with them the number of rows.

  Args:
    keep: `[B]` bool, such as `has_variance` returns; a group is good if all its rows
      are marked.
    group_ids: `[B]` integers.
    rng: a `numpy.random.Generator`, or a seed.

  Returns:
    `(rows, group_ids)`: int64 numbers of the rows to take, and the group of each, in
    which a replaced group keeps its own id. A copy is thus a group of its own, not an
    enlargement of the group it was copied from, whose standard deviation would change.

  Raises:
    ValueError: a wrong shape, or no good group at all.

  >>> rows, ids = replace_groups([True, True, False, False], [4, 4, 7, 7], 0)
  >>> rows.tolist(), ids.tolist()
  ([0, 1, 0, 1], [4, 4, 7, 7])

  References: SkyRL's `replace`.
  """
  ids, good = _good_groups(keep, group_ids)
  if not good.size:
    raise ValueError(
      f"none of the {len(np.unique(ids))} groups may be kept, so there is nothing to "
      "replace the others with: sample another batch"
    )
  order = _in_order(ids)
  bad = [group for group in order if group not in good]
  donors = np.random.default_rng(rng).permutation(good)
  donor_of = {group: donors[i % len(donors)] for i, group in enumerate(bad)}
  taken = [np.flatnonzero(ids == donor_of.get(group, group)) for group in order]
  sizes = [len(rows) for rows in taken]
  return np.concatenate(taken), np.repeat(order, sizes)


def _good_groups(keep, group_ids):
  """`(ids, those of the groups whose rows are all kept, in order of appearance)`."""
  keep, ids = np.asarray(keep) != 0, np.asarray(group_ids)
  if ids.ndim != 1 or keep.shape != ids.shape:
    raise ValueError(
      f"keep and group_ids must both be [B], got {keep.shape} and {ids.shape}"
    )
  order = _in_order(ids)
  return ids, order[~np.isin(order, ids[~keep])]


def _in_order(ids):
  values, first = np.unique(ids, return_index=True)
  return values[np.argsort(first)]
