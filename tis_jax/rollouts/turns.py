"""Turns: the uninterrupted runs of sampled tokens in a response."""

import numpy as np


def turn_ids(mask: np.ndarray) -> np.ndarray:
  """Which turn of its row each token is of.

  Args:
    mask: bool [B, T], the tokens that were sampled. What lies between two of them was
      said by somebody else: a tool, a user.

  Returns:
    int32 [B, T]: 0, 1, ... in order; -1 where nothing was sampled.

  >>> turn_ids(np.array([[True, True, False, True, False]])).tolist()
  [[0, 0, -1, 1, -1]]
  """
  before = np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
  counted = np.cumsum(mask & ~before, axis=1) - 1
  return np.where(mask, counted, -1).astype(np.int32)


def up_to_last(mask: np.ndarray) -> np.ndarray:
  """The places that a model reads: from the first to the last that was sampled.

  >>> up_to_last(np.array([[True, False, True, False]])).tolist()
  [[True, True, True, False]]
  """
  return np.flip(np.logical_or.accumulate(np.flip(mask, 1), axis=1), 1)


def spread_turns(per_turn: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """A number of each turn, given to the last token of it.

  Args:
    per_turn: `[B, U]`, such as `Rollout.turn_rewards`.
    mask: bool [B, T].

  Returns:
    `[B, T]` in the dtype of `per_turn`, 0 elsewhere: token-level rewards.

  >>> mask = np.array([[True, True, False, True, False]])
  >>> spread_turns(np.array([[0.5, 2.0]]), mask).tolist()
  [[0.0, 0.5, 0.0, 2.0, 0.0]]
  """
  turns = turn_ids(mask)
  after = np.pad(mask, ((0, 0), (0, 1)))[:, 1:]
  values = np.take_along_axis(per_turn, np.maximum(turns, 0), axis=1)
  return np.where(mask & ~after, values, 0).astype(per_turn.dtype)
