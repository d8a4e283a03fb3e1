"""pass@k and maj@k of several answers a prompt, without bias."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def pass_at_k(passed: np.ndarray, k: int) -> np.ndarray:
  """The chance that one of k answers is right, estimated from n >= k of them.

      pass@k = 1 - C(n - c, k) / C(n, k),  c = right answers

  The mean over all choices of k of the n; with k = n, whether any is right.

  Args:
    passed: bool `[N, n]`, whether each answer to each prompt is right.
    k: 1 to n.

  Returns:
    float64 `[N]`.

  Raises:
    ValueError: k outside its range.

  >>> pass_at_k(np.array([[True, False, False, False], [True] * 4]), 2)
  array([0.5, 1. ])

  Source: Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.
  """
  n = _checked(passed.shape[1], k)
  wrong = n - passed.sum(axis=1)
  # C(w, k) / C(n, k), factor by factor: none exceeds 1, and one is 0 where w < k.
  place = np.arange(k)
  missed = np.maximum(wrong[:, None] - place, 0) / (n - place)
  return 1.0 - missed.prod(axis=1)


def majority_at_k(
  passed: np.ndarray, answers: Sequence[Sequence[Hashable]], k: int
) -> np.ndarray:
  """Whether the commonest of k answers is right, averaged over blocks of k.

  The n answers are cut into n // k blocks in their order. An answer of None has no
  vote, a block without votes is wrong, and of answers with equally many votes the first
  one counts.

  Args:
    passed: bool `[N, n]`, whether each answer to each prompt is right.
    answers: N rows of n: what each says.
    k: 1 to n.

  Returns:
    float64 `[N]`.

  Raises:
    ValueError: k outside its range.

  >>> passed = np.array([[True, False, False, True, True, False]])
  >>> majority_at_k(passed, [["3", "4", "4", "3", "3", None]], 3)
  array([0.5])

  Source: Wang et al. 2022, https://arxiv.org/abs/2203.11171.
  """
  n = _checked(passed.shape[1], k)
  found = np.zeros(len(passed))
  blocks = range(0, n - k + 1, k)
  for row, said in enumerate(answers):
    for start in blocks:
      block = list(said[start : start + k])
      votes = Counter(answer for answer in block if answer is not None)
      if votes:
        # `most_common` keeps the order in which equals came.
        winner = block.index(votes.most_common(1)[0][0])
        found[row] += passed[row, start + winner]
  return found / len(blocks)


def _checked(n: int, k: int) -> int:
  if not 1 <= k <= n:
    raise ValueError(f"k={k} of {n} answers a prompt: it must be 1 to {n}")
  return n
