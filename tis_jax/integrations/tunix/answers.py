"""What a sampler of Tunix returned, as arrays, and which places of it train."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Answers(NamedTuple):
  """The answers of a batch.

  Attributes:
    sampler_logp: `[B, T]` float32, in nats; NaN where there is none.
    mask: `[B, T]` bool, the places that can train: an answer's tokens up to and with
      its first pad id.
    sampled: `[B, T]` bool, all places of an answer.
  """

  sampler_logp: np.ndarray
  mask: np.ndarray
  sampled: np.ndarray


def read_answers(
  tokens: Sequence[Any],
  logprobs: Sequence[Sequence[float | None]] | None,
  pad_id: int,
  length: int,
) -> Answers:
  """Lays answers out in rows, and cuts each behind a pad id that was sampled.

  Tunix's trainer takes every pad id for padding: behind one that was sampled the
  positions shift and the pad is not attended to, so the trainer's log-probs are of
  another context than the sampler's. At the pad id itself, and before it, they are
  right. What is left out is decided by what stands before a place, so the gradient of
  what is left in keeps its meaning. An answer ends with its log-probs: tokens behind
  them are padding.

  Args:
    tokens: `[B]` rows of ids, padded on the right or not at all.
    logprobs: `[B]` rows, one number a token of the answer; None where it is missing.
    pad_id: the trainer's.
    length: T, the longest answer.

  Raises:
    ValueError: no log-probs; more of them than tokens; tokens without them.

  >>> answers = read_answers([[5, 0, 6], [7]], [[-1.0, -2.0, -3.0], [-4.0]], 0, 4)
  >>> answers.sampler_logp.tolist()
  [[-1.0, -2.0, -3.0, nan], [-4.0, nan, nan, nan]]
  >>> answers.mask.tolist()
  [[True, True, False, False], [True, False, False, False]]
  """
  if logprobs is None:
    raise ValueError(
      "the sampler returned no log-probs, so there is nothing to correct by: set "
      "return_logprobs=True in RolloutConfig"
    )
  shape = (len(tokens), length)
  sampler_logp = np.full(shape, np.nan, np.float32)
  mask, sampled = np.zeros(shape, bool), np.zeros(shape, bool)
  for row, (ids, logp) in enumerate(zip(tokens, logprobs, strict=True)):
    ids, n = np.asarray(ids), len(logp)
    if len(ids) < n:
      raise ValueError(
        f"answer {row} has {n} log-probs and {len(ids)} tokens: the sampler's ids and "
        "log-probs are not of one answer"
      )
    if (ids[n:] != pad_id).any():
      raise ValueError(
        f"answer {row} has {n} log-probs, and tokens behind them that are no padding: "
        "a token without a log-prob is missing, which the sampler has to say (None)"
      )
    sampler_logp[row, :n] = [np.nan if x is None else x for x in logp]
    pads = np.flatnonzero(ids[:n] == pad_id)
    sampled[row, :n] = True
    mask[row, : pads[0] + 1 if pads.size else n] = True
  return Answers(sampler_logp, mask, sampled)
