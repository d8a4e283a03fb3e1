"""From per-token losses to one number, with the denominator in plain sight.

Every mode is one formula,

  loss = sum_bt mask_bt token_loss_bt / denominator_bt

and differs in the denominator alone. `denominators` computes it, once, over the whole
batch of an optimizer step; a micro-batch or a shard then divides its own rows by its
own slice, and the sum over micro-batches and shards is the batch's loss, exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.numerics.checks import (
  as_floats,
  as_mask,
  as_segment_ids,
  check_choice,
  check_number,
  check_rank,
)
from tis_jax.numerics.groups import group_sum
from tis_jax.numerics.units import sequence_length, sequence_sum

MODES = (
  "token_mean",
  "sequence_mean",
  "sequence_sum",
  "sequence_sum_constant",
  "token_sum",
  "prompt_mean",
)


def aggregate(
  token_loss: ArrayLike,
  mask: ArrayLike,
  mode: str = "token_mean",
  *,
  denominator_mask: ArrayLike | None = None,
  denominator: ArrayLike | None = None,
  group_ids: ArrayLike | None = None,
  segment_ids: ArrayLike | None = None,
  length: float | None = None,
) -> jax.Array:
  """Sums a token loss over its mask and divides by an explicit denominator.

  Args:
    token_loss: `[B, T]`. What lies under a False mask, NaN included, is ignored.
    mask: `[B, T]` bool or 0/1, the tokens that train: after rejection, if any.
    mode: see `denominators`.
    denominator_mask: `[B, T]` the mask that the denominator counts. The mask before
      rejection keeps the step's size (rejected tokens count as zeros), the mask after
      it renormalises to what is left. None is `mask`: the latter.
    denominator: what `denominators` returned for these rows, or a scalar, when they are
      a part of the batch (micro-batch, shard). It stands for the mode and all that
      belongs to it, which must then be left out.
    group_ids: `[B]` integers, the prompt of each row, for "prompt_mean".
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
    length: the constant of "sequence_sum_constant", in tokens.

  Returns:
    fp32 scalar; 0, with gradient 0, when nothing is in the mask.

  Raises:
    ValueError: wrong shapes, an unknown mode, an argument missing or in conflict.

  >>> import jax.numpy as jnp
  >>> loss = jnp.array([[1.0, 2.0, 3.0], [5.0, jnp.nan, jnp.nan]])
  >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
  >>> [float(aggregate(loss, mask, m)) for m in ("token_mean", "sequence_mean")]
  [2.75, 3.5]

  Micro-batches add up to the batch:

  >>> d = denominators(mask, "token_mean")
  >>> sum(float(aggregate(loss[i:i+1], mask[i:i+1], denominator=d[i:i+1]))
  ...     for i in (0, 1))
  2.75
  """
  check_rank("token_loss", token_loss, "BT")
  shape = jnp.shape(token_loss)
  mask = as_mask(mask, shape)
  if denominator is None:
    counted = mask if denominator_mask is None else denominator_mask
    as_mask(counted, shape, "denominator_mask")
    denominator = denominators(
      counted, mode, group_ids=group_ids, segment_ids=segment_ids, length=length
    )
  elif any(x is not None for x in (denominator_mask, group_ids, segment_ids, length)):
    raise ValueError(
      "denominator is given: leave out denominator_mask, group_ids, segment_ids and "
      "length, which are arguments of the `denominators` that made it"
    )
  denominator = jnp.asarray(denominator, jnp.float32)
  if denominator.shape not in ((), shape[:1], shape):
    raise ValueError(
      f"denominator must be a scalar, [B] or [B, T] = {shape}, got {denominator.shape}"
    )
  summed = jnp.where(mask, as_floats("token_loss", token_loss), 0.0)
  if denominator.ndim < 2:
    summed = summed.sum(-1)
  empty = denominator == 0
  return jnp.where(empty, 0.0, summed / jnp.where(empty, 1.0, denominator)).sum()


def denominators(
  mask: ArrayLike,
  mode: str = "token_mean",
  *,
  group_ids: ArrayLike | None = None,
  segment_ids: ArrayLike | None = None,
  length: float | None = None,
) -> jax.Array:
  """What each row's summed token loss is divided by, over a whole batch.

  With `n_b` tokens in sequence b, `S` sequences and `P` prompts that hold any token:

    token_mean             sum_b n_b       every token alike (DAPO, verl, SkyRL)
    sequence_mean          S n_b           mean over sequences of token means (GRPO)
    sequence_sum           S               mean over sequences of token sums
    sequence_sum_constant  S length        the same over a constant (Dr. GRPO)
    token_sum              1
    prompt_mean            P n_prompt(b)   mean over prompts of token means

  Args:
    mask: `[B, T]` bool or 0/1: every row of the optimizer step.
    mode: one of the above.
    group_ids: `[B]` integers, any values, for "prompt_mean".
    segment_ids: `[B, T]` integers of packed rows: a run of equal ids is a sequence.
      None: a row is a sequence.
    length: tokens, for "sequence_sum_constant".

  Returns:
    `[B]` fp32 (`[B, T]` with segment_ids, one a token), 0 for rows that hold nothing.
    Slice it together with the rows.

  Raises:
    ValueError: an unknown mode; a missing or superfluous group_ids or length.

  >>> import jax.numpy as jnp
  >>> denominators(jnp.array([[1, 1, 1], [1, 0, 0]]), "sequence_mean").tolist()
  [6.0, 2.0]

  References: arXiv:2503.14476 (DAPO), arXiv:2503.20783 (Dr. GRPO).
  """
  check_choice("mode", mode, MODES)
  _check_belongs("group_ids", group_ids, "prompt_mean", mode, "the prompt of each row")
  _check_belongs("length", length, "sequence_sum_constant", mode, "a number of tokens")
  if mode == "prompt_mean" and segment_ids is not None:
    raise ValueError("mode 'prompt_mean' takes one sequence a row, not packed rows")
  check_rank("mask", mask, "BT")
  mask = as_mask(mask, jnp.shape(mask))
  if segment_ids is None:
    tokens = mask.sum(-1, dtype=jnp.float32)
    filled = (tokens > 0).astype(jnp.float32)
    sequences = filled.sum()
  else:
    segment_ids = as_segment_ids(segment_ids, mask.shape)
    filled = mask.astype(jnp.float32)
    tokens = sequence_sum(filled, mask, segment_ids)
    # Each token is the n-th part of its sequence.
    sequences = (filled / sequence_length(mask, segment_ids)).sum()
  if mode == "token_mean":
    return filled * mask.sum(dtype=jnp.float32)
  if mode == "sequence_mean":
    return tokens * sequences
  if mode == "sequence_sum":
    return filled * sequences
  if length is not None:  # sequence_sum_constant
    check_number("length", length, above=0)
    return filled * sequences * length
  if group_ids is not None:  # prompt_mean
    rows_of_prompt = group_sum(filled, group_ids)
    prompts = (filled / jnp.maximum(rows_of_prompt, 1.0)).sum()
    return filled * prompts * group_sum(tokens, group_ids)
  return filled  # token_sum


def _check_belongs(name: str, value: Any, owner: str, mode: str, meaning: str) -> None:
  """Raises if an argument of one mode is missing there, or given to another."""
  if value is None and mode == owner:
    raise ValueError(f"mode {mode!r} needs {name}=, {meaning}")
  if value is not None and mode != owner:
    raise ValueError(f"{name} belongs to mode {owner!r}, the mode is {mode!r}")
