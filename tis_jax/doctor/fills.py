"""Values that stand for none: one number at many tokens, whatever the learner says.

A log-prob that was never taken is written down as 0, -1, NaN, ... Where in a row it
stands tells what went wrong: at the last token, in a tail, at the start, anywhere.
"""

import numpy as np

from tis_jax.doctor.evidence import CERTAIN, FAR, Evidence, Tokens, typical_gap
from tis_jax.doctor.odds import grain
from tis_jax.doctor.suspicion import Suspicion, places

OFF = 0.1
"""Nats that the learner must be away from a number for the number to be a fill."""
OFF_ZERO = 1e-4
"""The same for 0, by which fp32 says that all others together have less than 6e-8."""
NEARLY = 1e-5
"""What a sampler that is certain says beside 0."""
OFTEN = 0.03
"""Share of tokens at which a number other than 0 is looked at."""
LEAST = 3
"""Tokens that must be filled."""
SHARE = 0.002
"""The same as a share of all tokens."""
PADDED_ROWS = 0.1
"""Share of rows that end in padding."""
LONG = 8
"""Tokens of a tail that is padding by itself: so many in a row are not certain."""
PADDED_TOKENS = 0.01
"""Share of tokens in such tails."""


def filled(evidence: Evidence) -> list[Suspicion]:
  """The faults that a filled value is a sign of, by the place where it stands."""
  found = [*_values(evidence), *_lost(evidence)]
  tail = _padding(evidence)
  return found if tail is None else [*found, tail]


def _values(evidence: Evidence) -> list[Suspicion]:
  tokens = evidence.tokens
  value = np.full(len(tokens), np.nan)
  off = np.zeros(len(tokens), bool)
  for mode in _modes(tokens.sampler, tokens.learner):
    at = tokens.sampler == mode
    away = np.abs(tokens.learner - mode)
    if mode == 0:
      bar = max(OFF_ZERO, grain(tokens.sampler[~at]))
      found = at & (away > bar)
      # A sampler that is certain says what is all but 0 as often as what is 0.
      nearly = (tokens.sampler < 0) & (tokens.sampler > -NEARLY) & (away > bar)
      if found.sum() <= 3 * nearly.sum():
        continue
    else:
      rest = Tokens(*(x[~at] for x in tokens))
      found = at & (away > max(OFF, 8 * typical_gap(rest)))
    if found.sum() >= LEAST:
      value[at] = mode
      off |= found
  if not off.any():
    return []
  least = max(LEAST, SHARE * len(tokens))
  return _by_place(evidence, tokens, ~np.isnan(value), off, least, value)


def _modes(sampler: np.ndarray, learner: np.ndarray) -> np.ndarray:
  """0, and the numbers that stand at many tokens.

  Answers to one prompt that begin alike repeat their log-probs, too; but then the
  learner repeats its own as often. A number all but 0 is what certainty is rounded to.
  """
  numbers, counts = np.unique(sampler, return_counts=True)
  own = np.unique(learner[learner < CERTAIN].round(3), return_counts=True)[1]
  often = max(10, OFTEN * len(sampler), 2 * own.max(initial=0))
  found = numbers[(counts >= often) & (np.abs(numbers) > NEARLY)]
  return np.union1d(found, [0.0])


def _lost(evidence: Evidence) -> list[Suspicion]:
  """The same of tokens whose log-prob is NaN: missing by name, but not by chance."""
  tokens = evidence.lost
  if len(tokens) < LEAST:
    return []
  everything = Tokens(
    *(np.concatenate(pair) for pair in zip(evidence.tokens, tokens, strict=True))
  )
  order = np.lexsort((everything.place, everything.row))
  everything = Tokens(*(x[order] for x in everything))
  at = ~np.isfinite(everything.sampler)
  least = max(LEAST, SHARE * len(everything))
  return _by_place(evidence, everything, at, at, least, np.where(at, np.nan, 0.0))


def _by_place(evidence, tokens, at, off, least, value) -> list[Suspicion]:
  """Sorts filled tokens by where in their row they stand."""
  leading, trailing = _runs(tokens, at)
  length = tokens.place + tokens.from_end + 1
  whole = leading >= length
  first = (tokens.place < leading) & ~whole
  tail = (tokens.from_end < trailing) & ~whole
  alone = tail & (trailing == 1)
  kinds = {
    "missing_end": off & alone,
    "padding_counted": off & tail & ~alone,
    "prompt_in_mask": off & first,
  }
  elsewhere = off & ~(alone | tail | first)
  kinds["zero_filled"] = elsewhere
  total = off.sum()
  kind = max(kinds, key=lambda name: kinds[name].sum())
  if kinds[kind].sum() < 0.6 * total:
    kind = "zero_filled"
  chosen = off if kind == "zero_filled" else kinds[kind]
  numbers = value[chosen]
  lost = bool(np.isnan(numbers).all())
  shown = "missing (NaN)" if lost else f"exactly {np.median(numbers):g}"
  if lost and kind == "zero_filled":
    return []  # missing, and said to be: no fault
  far = np.abs(np.nan_to_num(tokens.learner) - np.nan_to_num(value))
  rows = len(np.unique(tokens.row[chosen]))
  where = _WHERE[kind]
  return [
    Suspicion(
      kind,
      float(chosen.sum()),
      float(least),
      "tokens with a filled-in value",
      f"the sampler's log-prob is {shown} at {int(chosen.sum()):,} tokens of {rows:,} "
      f"rows, {where}; the learner's there is {np.median(tokens.learner[chosen]):.3g} "
      "at the median",
      places(evidence.dump.shape, tokens, np.where(chosen, 1 + far, 0.0)),
    )
  ]


_WHERE = {
  "missing_end": "each the last of its row",
  "padding_counted": "in the tails of rows",
  "prompt_in_mask": "at the start of rows",
  "zero_filled": "not only at the start or end of rows",
}


def _runs(tokens: Tokens, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For each token, how many `at` its row begins with, and ends with."""
  length = tokens.place + tokens.from_end + 1
  rows = int(tokens.row.max()) + 1
  big = int(length.max())
  first_other = np.full(rows, big)
  np.minimum.at(first_other, tokens.row[~at], tokens.place[~at])
  last_other = np.full(rows, big)
  np.minimum.at(last_other, tokens.row[~at], tokens.from_end[~at])
  return (
    np.minimum(first_other[tokens.row], length),
    np.minimum(last_other[tokens.row], length),
  )


def _padding(evidence: Evidence) -> Suspicion | None:
  """Tails in which both sides stand still, or one token is repeated under a gap."""
  dump, mask = evidence.dump, evidence.dump.mask
  still = _tail(dump.sampler_logp, mask) & _tail(dump.old_logp, mask)
  exact = still & (dump.sampler_logp == 0) & (dump.old_logp == 0)
  tail = exact
  if dump.tokens is not None:
    repeated = _tail(dump.tokens, mask)
    gap = np.abs(np.nan_to_num(dump.old_logp - dump.sampler_logp, nan=FAR))
    usual = max(OFF, 8 * evidence.typical)
    apart = repeated & (_row_mean(gap, repeated) > usual)
    ids, counts = np.unique(dump.tokens[apart], return_counts=True)
    if len(ids):  # padding has one id
      tail = tail | (apart & (dump.tokens == ids[counts.argmax()]))
  filled = mask.sum(axis=1) > 0
  rows = tail.any(axis=1)
  lengths = tail.sum(axis=1)
  long = float(lengths[lengths >= LONG].sum() / mask.sum())
  share = float(rows[filled].mean()) if rows.sum() >= LEAST else 0.0
  if not long and not share:
    return None
  of_tokens = long / PADDED_TOKENS > share / PADDED_ROWS
  return Suspicion(
    "padding_counted",
    long if of_tokens else share,
    PADDED_TOKENS if of_tokens else PADDED_ROWS,
    f"share of tokens in tails of {LONG} and more"
    if of_tokens
    else "share of rows that end in padding",
    f"{rows.sum():,} of {filled.sum():,} rows end in {tail.sum():,} tokens under the "
    "mask that no one sampled: both log-probs are 0 there, or one id is repeated",
    tail * 1.0,
  )


def _tail(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """`[B, T]`: the tokens, two at least, at the end of a row that are all alike."""
  count = mask.shape[1]
  last = np.where(mask.any(axis=1), count - 1 - mask[:, ::-1].argmax(axis=1), 0)
  end = np.take_along_axis(values, last[:, None], axis=1)
  other = mask & (values != end)
  start = np.where(other.any(axis=1), count - other[:, ::-1].argmax(axis=1), 0)
  columns = np.arange(count)
  found = mask & (columns >= start[:, None])
  return found & (found.sum(axis=1, keepdims=True) >= 2)


def _row_mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """`[B, 1]` mean over the chosen places of a row; 0 where there are none."""
  total = np.where(chosen, values, 0.0).sum(axis=1, keepdims=True)
  return total / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
