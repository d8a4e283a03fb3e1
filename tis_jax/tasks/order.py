"""The order in which prompts are drawn, computable at any point of a run."""

from functools import lru_cache

import numpy as np


def prompt_order(size: int, seed: int, start: int, count: int) -> np.ndarray:
  """Indices of the prompts that draws `start, ..., start + count - 1` use.

  ```
  order[i] = permutation(seed, epoch)[draw % size],
  draw = start + i,  epoch = draw // size
  ```

  Each draw depends on `(size, seed, draw)` alone: a restarted sampler needs one number,
  and samplers that share a seed and take disjoint draws never show a prompt twice in
  an epoch. The permutation sorts raw Philox output, which NumPy keeps the same from
  release to release; it does not promise that of `Generator.permutation`.

  Args:
    size: number of prompts, at least 1.
    seed: stream of permutations, from 0.
    start: first draw, from 0.
    count: number of draws.

  Returns:
    int64 [count], values in `[0, size)`.

  Raises:
    ValueError: `size` below 1, or a negative `seed`, `start` or `count`.

  >>> prompt_order(5, seed=0, start=0, count=5).tolist()
  [0, 2, 1, 4, 3]
  >>> prompt_order(5, seed=0, start=3, count=4).tolist()
  [4, 3, 3, 2]
  """
  if size < 1:
    raise ValueError(f"no prompt to draw from: size={size}")
  if min(seed, start, count) < 0:
    raise ValueError(f"negative seed={seed}, start={start} or count={count}")
  epochs, places = np.divmod(np.arange(start, start + count, dtype=np.int64), size)
  order = np.empty(count, np.int64)
  for epoch in np.unique(epochs).tolist():
    inside = epochs == epoch
    order[inside] = _permutation(size, seed, epoch)[places[inside]]
  return order


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  keys = np.random.Philox(key=(epoch << 64) | seed).random_raw(size)
  return np.argsort(keys, kind="stable")
