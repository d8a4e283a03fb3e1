"""Learner batches: fixed shapes, put together on the host from rollout records.

Everything here is numpy and pure; the arrays of a batch are JAX's only inside an
update. A batch in the making is a `Batch` of any number of
rows: `from_rollouts` makes it, `concatenate` adds what the last step left, `take_rows`
filters it (dynamic sampling: by `advantages.has_variance`), `pad` gives it the shapes
the update was compiled for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tis_jax.numerics.arrays import Array
from tis_jax.rollouts import ABORTED, up_to_last


class Batch(NamedTuple):
  """Rows of one prompt and one response each.

  Attributes:
    prompts: `[B, P]` int32, left padded.
    prompt_mask: `[B, P]` bool.
    tokens: `[B, T]` int32 responses, right padded, the end-of-sequence token included.
    mask: `[B, T]` bool, the tokens the policy sampled; False in padding and in holes
      (a tool's answer between two sampled parts), which are attended to, not trained.
    sampler_logp: `[B, T]` fp32, in nats. NaN under the mask is a missing value.
    versions: `[B, T]` int32 version of the policy that sampled each token.
    rewards: `[B]` fp32.
    group_ids: `[B]` int32; equal for the answers to one prompt, unique in the batch.
    finish_reasons: `[B]` int8; 0 stopped by itself, 1 ran into the length limit, 2 was
      aborted: nothing of such a row trains, and no baseline counts it.
    kept_mass: `[B, T]` fp32 probability of the tokens that top-k, top-p and min-p left
      to the sampler, or None.
    kept_tokens: `[B, T, K]` int32, which those were, padded with -1, or None.
    greedy_rewards: `[B]` fp32, of the greedy answer to each row's prompt, or None.
    named_rewards: `[B, K]` fp32, further rewards in the order of the task's, or None.
    top_tokens: `[B, T, K]` int32, the sampler's most probable tokens, padded with -1,
      or None.
    top_logp: `[B, T, K]` fp32, its log-probs of these, -inf for padding, or None.
    turn_rewards: `[B, U]` fp32, of each turn (an uninterrupted run of the mask) in
      order, NaN behind the last, or None where rewards are of whole responses.
    routed_experts: `[B, P + T, L, E]` int16, to which E experts each of L layers of the
      sampler sent each token, -1 where it was not fed in, or None.
  """

  prompts: Array
  prompt_mask: Array
  tokens: Array
  mask: Array
  sampler_logp: Array
  versions: Array
  rewards: Array
  group_ids: Array
  finish_reasons: Array
  kept_mass: Array | None = None
  kept_tokens: Array | None = None
  greedy_rewards: Array | None = None
  named_rewards: Array | None = None
  top_tokens: Array | None = None
  top_logp: Array | None = None
  turn_rewards: Array | None = None
  routed_experts: Array | None = None


_OPTIONAL = tuple(Batch._field_defaults)


def from_rollouts(rollouts: Sequence) -> Batch:
  """All rows of some rollout records, in order, with group ids unique among them.

  What follows the last token that a row trains becomes token 0, so that nothing there
  can be an id that the model does not have.

  Args:
    rollouts: objects with the attributes of `Batch`, the optional ones maybe missing;
      equal P and T.

  Raises:
    ValueError: no records, or some with and some without an optional array.
  """
  return concatenate(
    [
      _readable(Batch._make(getattr(r, name, None) for name in Batch._fields))
      for r in rollouts
    ]
  )


def _readable(batch: Batch) -> Batch:
  aborted = batch.finish_reasons == ABORTED
  mask = np.asarray(batch.mask & ~aborted[:, None])
  return batch._replace(
    mask=mask,
    prompts=np.where(batch.prompt_mask, batch.prompts, 0),
    tokens=np.where(up_to_last(mask), batch.tokens, 0),
    rewards=np.where(aborted, 0, batch.rewards),
    greedy_rewards=_or(0, batch.greedy_rewards, aborted),
    named_rewards=_or(0, batch.named_rewards, aborted),
    turn_rewards=_or(np.nan, batch.turn_rewards, aborted),
  )


def _or(nothing, values, aborted):
  """Of a row that was given up nothing is read, and NaN times a weight of 0 is NaN."""
  if values is None:
    return None
  rows = aborted.reshape(-1, *[1] * (np.ndim(values) - 1))
  return np.where(rows, nothing, values).astype(np.float32)


def concatenate(batches: Sequence[Batch]) -> Batch:
  """The rows of several batches, in order; groups of different batches stay apart.

  >>> columns = [np.zeros((2, 1))] * 6  # prompts to versions
  >>> one = Batch(*columns, np.zeros(2), np.array([7, 7]), np.zeros(2))
  >>> two = one._replace(group_ids=np.array([7, 3]))
  >>> concatenate([one, two]).group_ids.tolist()
  [0, 0, 2, 1]
  """
  if not batches:
    raise ValueError("there are no rows to make a batch of")
  for name in _OPTIONAL:
    if len({getattr(batch, name) is None for batch in batches}) > 1:
      raise ValueError(
        f"some rollouts record {name} and some do not: they were sampled differently "
        "and must not share a batch"
      )
  offset, renumbered = 0, []
  for batch in _with_as_many_turns(batches):
    names, dense = np.unique(batch.group_ids, return_inverse=True)
    renumbered.append(batch._replace(group_ids=(dense + offset).astype(np.int32)))
    offset += len(names)
  return Batch._make(
    None if column[0] is None else np.concatenate(column)
    for column in zip(*renumbered, strict=True)
  )


def _with_as_many_turns(batches: Sequence[Batch]) -> Sequence[Batch]:
  """The batches with room for the turns of each: writers may differ in it."""
  if batches[0].turn_rewards is None:
    return batches
  found = [np.asarray(batch.turn_rewards) for batch in batches]
  most = max(rewards.shape[1] for rewards in found)
  widened = [
    np.pad(x, ((0, 0), (0, most - x.shape[1])), constant_values=np.nan) for x in found
  ]
  return [b._replace(turn_rewards=x) for b, x in zip(batches, widened, strict=True)]


def take_rows(batch: Batch, index) -> Batch:
  """The rows that `index` (a bool mask or row numbers) selects."""
  return Batch._make(None if x is None else np.asarray(x)[index] for x in batch)


def pad(
  batch: Batch,
  *,
  rows: int | None = None,
  prompt_length: int | None = None,
  response_length: int | None = None,
  pad_id: int = 0,
) -> Batch:
  """The batch in the static shapes of the update.

  Prompts grow on the left, responses on the right. A row that is added holds nothing:
  its masks are False and it counts nowhere.

  Args:
    batch: at most this many rows, this long.
    rows: B; as it is by default.
    prompt_length: P.
    response_length: T.
    pad_id: token under False masks.

  Raises:
    ValueError: the batch is larger than the shape asked for.
  """
  (b, p), t = batch.prompts.shape, batch.tokens.shape[1]
  more = {
    "rows": (b if rows is None else rows) - b,
    "prompt_length": (p if prompt_length is None else prompt_length) - p,
    "response_length": (t if response_length is None else response_length) - t,
  }
  for name, extra in more.items():
    if extra < 0:
      raise ValueError(f"the batch exceeds {name} by {-extra}")
  new_rows = (0, more["rows"])
  left, right = (more["prompt_length"], 0), (0, more["response_length"])
  fill = {"prompts": pad_id, "tokens": pad_id, "group_ids": -1, "kept_tokens": -1}
  fill |= {"top_tokens": -1, "top_logp": -np.inf, "turn_rewards": np.nan}
  fill |= {"routed_experts": -1}

  def grow(name, x):
    if x is None:
      return None
    column = left if name.startswith("prompt") else right
    if name in ("named_rewards", "turn_rewards"):
      column = (0, 0)
    elif name == "routed_experts":
      # Prompt and response side by side.
      column = (more["prompt_length"], more["response_length"])
    widths = (new_rows, column, (0, 0), (0, 0))[: x.ndim]
    return np.pad(x, widths, constant_values=fill.get(name, 0))

  return Batch._make(grow(name, x) for name, x in batch._asdict().items())


def save_batch(path: str | Path, batch: Batch, **extra) -> None:
  """Writes a batch, and whatever arrays belong to it (`old_logp=...`), as `.npz`."""
  given = {name: x for name, x in batch._asdict().items() if x is not None} | extra
  arrays: dict[str, Any] = {name: np.asarray(x) for name, x in given.items()}
  np.savez_compressed(path, **arrays)


def load_batch(path: str | Path) -> tuple[Batch, dict[str, np.ndarray]]:
  """Reads what `save_batch` wrote: the batch, and the other arrays by name."""
  with np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
  batch = Batch(**{name: arrays.pop(name, None) for name in Batch._fields})
  return batch, arrays
