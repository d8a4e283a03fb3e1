"""Log-probs of other tokens: shifted along the row, from some place on, or anywhere."""

import numpy as np

from tis_jax.doctor.evidence import Evidence
from tis_jax.doctor.odds import moved
from tis_jax.doctor.suspicion import Suspicion, places

LAGS = (1, -1, 2, -2)
"""Places that a log-prob may be off by."""
GAIN = 1.25
"""How much nearer the shifted log-probs must be, in mean absolute difference."""
ERRORS = 4.0
"""Standard errors of the difference between the two by which they are, at least."""
FLOOR = 0.05
"""Nats of mean difference below which nothing is told of a shift."""
SHIFTED_ROWS = 0.05
"""Share of rows that are shifted by themselves."""
BROKEN_ROWS = 0.05
"""Share of rows that are shifted from some place on."""

_HELD = 4.0  # a single difference counts at most so much
_LONG = 6  # tokens of a row that is judged by itself


def misaligned(evidence: Evidence) -> list[Suspicion]:
  """Rows whose log-probs are nearer to those of a neighbouring token."""
  learner, sampler, count = _compressed(evidence)
  straight = _apart(learner, sampler, 0)
  found = [x for lag in LAGS if (x := _whole(evidence, learner, sampler, count, lag))]
  whole = max(found, key=lambda x: x.score, default=None)
  broken = _broken(evidence, learner, sampler, count, straight)
  found = [x for x in (whole, broken) if x is not None]
  # Of two shares of rows the larger decides; rows may break at their second token.
  if whole and broken and broken.found and whole.threshold == SHIFTED_ROWS:
    found.sort(key=lambda x: -x.statistic)
  return found


def _compressed(evidence: Evidence):
  """`[B, L]` of both sides, a row's tokens without its holes; NaN behind them."""
  tokens = evidence.tokens
  rows = len(evidence.dump.mask)
  count = np.bincount(tokens.row, minlength=rows)
  width = int(count.max(initial=1))
  start = np.concatenate([[0], count.cumsum()[:-1]])
  place = np.arange(len(tokens)) - start[tokens.row]
  both = []
  for values in (tokens.learner, tokens.sampler):
    table = np.full((rows, width), np.nan)
    table[tokens.row, place] = values
    both.append(table)
  return *both, count


def _apart(learner: np.ndarray, sampler: np.ndarray, lag: int) -> np.ndarray:
  """`[B, L]`: |sampler - learner `lag` places on|; NaN where there is none."""
  other = np.full_like(learner, np.nan)
  if lag > 0:
    other[:, :-lag] = learner[:, lag:]
  elif lag < 0:
    other[:, -lag:] = learner[:, :lag]
  else:
    other = learner
  return np.minimum(np.abs(sampler - other), _HELD)


def _whole(evidence, learner, sampler, count, lag: int) -> Suspicion | None:
  """A shift of the whole dump, or of some of its rows."""
  straight, moved = _apart(learner, sampler, 0), _apart(learner, sampler, lag)
  both = np.isfinite(moved) & np.isfinite(straight)
  if both.sum() < 20:
    return None
  side = f"{abs(lag)} {'after' if lag > 0 else 'before'}"
  before, after = straight[both].mean(), moved[both].mean()
  nearer = (straight - moved)[both]
  surely = nearer.mean() > ERRORS * nearer.std() / np.sqrt(len(nearer))
  number = both.sum(axis=1)
  # A row that is shifted from some place on only is another fault.
  early = both & (np.cumsum(both, axis=1) <= number[:, None] // 3)
  times = before / max(after, 1e-9)
  if early.any():
    times = min(times, straight[early].mean() / max(moved[early].mean(), 1e-9))
  mean = lambda x: np.where(both, x, 0).sum(axis=1) / np.maximum(number, 1)
  by_row, moved_by_row = mean(straight), mean(moved)
  gain = np.maximum(by_row - moved_by_row, 0)
  all_of_it = Suspicion(
    "shifted_tokens",
    float(times) if before > FLOOR and surely else 0.0,
    GAIN,
    "distance from the own token's log-prob, over that from its neighbour's",
    f"the sampler's log-probs lie {after:.3g} nats from the learner's of the token "
    f"{side}, and {before:.3g} from those of their own",
    np.where(evidence.dump.mask, gain[:, None], 0.0),
  )
  judged = number >= _LONG
  if all_of_it.found or judged.sum() < 8:
    return all_of_it
  usual = max(FLOOR, 5 * evidence.typical)
  rows = judged & (moved_by_row < 0.4 * by_row) & (by_row > usual)
  start = np.where(early, moved - straight, 0.0).sum(axis=1)
  rows &= start < 0
  some_of_it = Suspicion(
    "shifted_tokens",
    float(rows[judged].mean()),
    SHIFTED_ROWS,
    "share of rows that are shifted",
    f"in {rows.sum():,} of {judged.sum():,} rows of {_LONG} tokens and more the "
    f"sampler's log-probs are nearer to the learner's of the token {side} than to "
    "those of their own",
    np.where(evidence.dump.mask & rows[:, None], gain[:, None], 0.0),
  )
  return max(all_of_it, some_of_it, key=lambda x: x.score)


def _broken(evidence, learner, sampler, count, straight) -> Suspicion | None:
  """Rows that agree up to some place, and are shifted by one or two behind it."""
  rows = np.flatnonzero(count >= 8)
  if len(rows) < 4:
    return None
  kept = np.nan_to_num(straight[rows])
  total = kept.sum(axis=1)
  best = total.copy()
  cut = np.zeros(len(rows), int)
  for lag in LAGS:
    moved = _apart(learner, sampler, lag)[rows]
    moved = np.where(np.isfinite(moved), moved, kept)
    # Cost of "as it is before s, moved from s on", for each s.
    head = np.concatenate([np.zeros((len(rows), 1)), kept.cumsum(axis=1)], axis=1)
    tail = moved[:, ::-1].cumsum(axis=1)[:, ::-1]
    cost = head[:, :-1] + tail
    at = cost.argmin(axis=1)
    value = cost[np.arange(len(rows)), at]
    better = value < best
    best, cut = np.where(better, value, best), np.where(better, at, cut)
  length = count[rows]
  behind = length - cut
  rate = (total - best) / np.maximum(behind, 1)
  before = kept.cumsum(axis=1)[np.arange(len(rows)), np.maximum(cut - 1, 0)]
  before = before / np.maximum(cut, 1)
  broken = (
    (cut >= 2)
    & (behind >= 4)
    & (best < 0.5 * total)
    & (rate > max(0.15, 3 * evidence.typical))
    & (before < 0.5 * rate)
  )
  if broken.sum() < 2:
    return None
  share = float(broken.mean())
  where = np.zeros(evidence.dump.shape)
  place, _ = evidence.places
  for row, start, gain in zip(rows[broken], cut[broken], rate[broken], strict=True):
    where[row] = np.where(evidence.dump.mask[row] & (place[row] >= start), gain, 0)
  return Suspicion(
    "retokenised",
    share,
    BROKEN_ROWS,
    "share of rows that break",
    f"{broken.sum():,} of {len(rows):,} rows agree up to a place, and behind it the "
    "sampler's log-probs fit the learner's one or two tokens on: the two sides score "
    "different tokens from there",
    where,
  )


def other_ids(evidence: Evidence) -> list[Suspicion]:
  """Places where the two sides have ids of their own, and they differ."""
  dump = evidence.dump
  if dump.tokens is None or dump.sampler_tokens is None:
    return []
  differ = dump.mask & (dump.tokens != dump.sampler_tokens)
  share = float(differ.sum() / dump.mask.sum())
  if not differ.any():
    return []
  return [
    Suspicion(
      "retokenised",
      share,
      1e-6,
      "share of tokens whose ids differ",
      f"at {differ.sum():,} tokens ({share:.2%}) the id that was scored is not the one "
      "that was sampled",
      differ * 1.0,
    )
  ]


def spikes(evidence: Evidence) -> list[Suspicion]:
  """Single tokens far off among tokens that agree, inside of rows."""
  tokens = evidence.tokens
  if len(tokens) < 50:
    return []
  gap = np.abs(tokens.gap)
  rest = np.quantile(gap, 0.9)
  # What is not sure is further apart; a token of another text is so for its log-odds.
  odds = moved(tokens)
  bar = max(SPIKE, 6 * np.quantile(odds, 0.9))
  spike = (gap > max(SPIKE, 6 * rest)) & (odds > bar)
  share = float(spike.mean())
  inside = (tokens.place > 0) & (tokens.from_end > 0)
  inner = spike & inside
  rows = len(np.unique(tokens.row[inner]))
  if (
    not spike.any()
    or share > 0.1
    or rest > SPIKE / 4
    or inner.sum() < 0.6 * spike.sum()
    or rows < 3
  ):
    return []
  return [
    Suspicion(
      "retokenised",
      share,
      SPIKES,
      "share of tokens that stand out",
      f"{spike.sum():,} tokens ({share:.2%}) in {rows:,} rows are more than a nat "
      f"apart, and {bar:.2g} in log-odds, inside of rows, and nine of ten of all are "
      f"within {rest:.2g}",
      places(evidence.dump.shape, tokens, np.where(spike, gap, 0.0)),
    )
  ]


SPIKE = 1.0
"""Nats that a single token has to be off by to stand out."""
SPIKES = 0.003
"""Share of such tokens."""
