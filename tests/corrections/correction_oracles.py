"""Float64 numpy versions of the levels, one token at a time, and batches to try."""

from typing import NamedTuple

import numpy as np


class Rollouts(NamedTuple):
  old: np.ndarray
  sampler: np.ndarray
  mask: np.ndarray
  segment_ids: np.ndarray | None = None

  @property
  def arrays(self):
    return self.old, self.sampler, self.mask


def rollouts(seed=0, batch=6, length=12, noise=0.3, holes=0.2, packed=False):
  """Log-probs with a mismatch; holes in the mask, one empty row, garbage under it."""
  rng = np.random.default_rng(seed)
  sampler = -rng.exponential(size=(batch, length))
  old = sampler + noise * rng.normal(size=(batch, length))
  mask = rng.random((batch, length)) > holes
  mask[:, -2:] = False
  mask[-1] = False
  garbage = rng.choice([np.nan, np.inf, -np.inf, 1e30], size=mask.shape)
  old = np.where(mask, old, garbage).astype(np.float32)
  sampler = np.where(mask, sampler, garbage[::-1]).astype(np.float32)
  ids = None
  if packed:
    ids = 1 + np.arange(length)[None] * 3 // length + np.zeros((batch, 1), int)
    ids = np.where(mask, ids, rng.integers(-5, 5, mask.shape)).astype(np.int32)
  return Rollouts(old, sampler, mask, ids)


def log_ratio(data):
  with np.errstate(all="ignore"):
    d = np.float64(data.old) - np.float64(data.sampler)
  return np.where(data.mask, np.clip(d, -20, 20), 0.0)


def unit_of(data, turns=False):
  """For each token the number of its unit, -1 where masked."""
  units = np.full(data.mask.shape, -1)
  number = -1
  for b, row in enumerate(data.mask):
    last = None
    for t, valid in enumerate(row):
      if not valid:
        last = (last[0], True) if last else None
        continue
      key = 0 if data.segment_ids is None else data.segment_ids[b, t]
      if last is None or key != last[0] or (turns and last[1]):
        number += 1
      units[b, t] = number
      last = (key, False)
  return units


def level(data, name, tokens=None):
  """The log-ratio at each level over the True of `tokens`; 0 where masked."""
  d, mask = log_ratio(data), data.mask
  tokens = mask if tokens is None else tokens
  if name == "token":
    return d
  units = unit_of(data, turns=name.startswith("turn"))
  out = np.zeros_like(d)
  for b, t in np.argwhere(mask):
    same = (units[b] == units[b, t]) & tokens[b]
    if name == "min_prefix":
      before = d[b][same & (np.arange(mask.shape[1]) < t)]
      own = d[b, t] if tokens[b, t] else 0.0
      out[b, t] = np.clip(own + min(before, default=0.0), -20, 20)
      continue
    if name == "prefix":
      same &= np.arange(mask.shape[1]) <= t
    total, number = d[b][same].sum(), max(same.sum(), 1)
    scale = {
      "geometric": number,
      "turn_geometric": number,
      "root": np.sqrt(number),
    }.get(name, 1)
    out[b, t] = np.clip(total / scale, -20, 20)
  return out


def over_sequences(data, x, reduce):
  """`reduce` of `x` over each token's sequence, at every valid token."""
  units, out = unit_of(data), np.zeros(data.mask.shape)
  for b, t in np.argwhere(data.mask):
    out[b, t] = reduce(x[b][units[b] == units[b, t]])
  return out
