"""Kept sets, tight or padded: what top-k, top-p and min-p left to choose from.

An engine hands them out tight, `[sizes.sum()]` ids and where each set begins, as a
compressed sparse row does (vLLM's `sampling_mask`); compiled code wants them padded.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tis_jax.rollouts.record import Rollout


def padded_sets(
  offsets: np.ndarray, ids: np.ndarray, shape: tuple[int, int], width: int
) -> np.ndarray:
  """Kept sets with room for `width` ids each.

  Args:
    offsets: int64 [B * T + 1].
    ids: int32 [I].
    shape: (B, T).
    width: K.

  Returns:
    int32 [B, T, K], padded with -1, and all -1 where a set is larger than K.

  >>> padded_sets(np.array([0, 2, 2, 5]), np.array([7, 8, 1, 2, 3]), (1, 3), 2).tolist()
  [[[7, 8], [-1, -1], [-1, -1]]]
  """
  sizes = np.diff(offsets)
  fits = (sizes > 0) & (sizes <= width)
  padded = np.full((len(sizes), width), -1, np.int32)
  place = np.repeat(np.arange(len(sizes)), sizes)
  column = np.arange(len(ids)) - np.repeat(offsets[:-1], sizes)
  held = fits[place]
  padded[place[held], column[held]] = ids[held]
  return padded.reshape(*shape, width)


def tight_sets(sets: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """`kept_offsets` and `kept_ids` of the sets of all places, row by row.

  Args:
    sets: B * T of them; an empty one where nothing was sampled or nothing left out.

  >>> offsets, ids = tight_sets([[7, 8], [], [1]])
  >>> offsets.tolist(), ids.tolist()
  ([0, 2, 2, 3], [7, 8, 1])
  """
  sizes = np.array([0, *map(len, sets)], np.int64)
  ids = [token for kept in sets for token in kept]
  return np.cumsum(sizes), np.array(ids, np.int32)


def with_padded_sets(rollout: Rollout, width: int) -> Rollout:
  """The record with its tight kept sets padded to `width`; at 0, without them."""
  if rollout.kept_offsets is None or rollout.kept_ids is None:
    return rollout
  kept = None
  if width:
    kept = padded_sets(
      rollout.kept_offsets, rollout.kept_ids, rollout.tokens.shape, width
    )
  return dataclasses.replace(
    rollout, kept_tokens=kept, kept_offsets=None, kept_ids=None
  )
