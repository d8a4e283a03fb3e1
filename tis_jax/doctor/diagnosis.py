"""From a dump to a verdict."""

import dataclasses

import numpy as np

from tis_jax.doctor.alignment import misaligned, other_ids, spikes
from tis_jax.doctor.causes import CAUSES, REMARKS
from tis_jax.doctor.dump import Dump
from tis_jax.doctor.ends import at_ends, few
from tis_jax.doctor.evidence import Evidence
from tis_jax.doctor.fills import filled
from tis_jax.doctor.laws import another_law, unlogged
from tis_jax.doctor.report import Finding, Place, Report, Transcript
from tis_jax.doctor.sizes import by_size
from tis_jax.doctor.suspicion import Suspicion

LEAST_TOKENS = 30
"""That a diagnosis needs."""
RESAMPLED_TOKENS = 50_000
"""Of a resampling, at most: confidence in a larger dump is that in a part of it."""
SHOWN_ROWS = 3
SHOWN_TOKENS = 12

# The first that is found decides: what comes later may be its consequence.
_ORDER = (
  unlogged,
  other_ids,
  filled,
  misaligned,
  at_ends,
  spikes,
  another_law,
  by_size,
  few,
)


def diagnose(
  dump: Dump, *, sampler_dtype: str = "", resamples: int = 20, seed: int = 0
) -> Report:
  """What explains the gap between sampler and learner in a dump.

  Every test measures one statistic and holds it against a threshold that was set on
  batches with and without injected faults (`docs/doctor.md` has the error rates on
  others). Faults that explain others are looked for first.

  Args:
    dump: from `read` or `from_arrays`.
    sampler_dtype: what the sampler computes in, in words, where the dump does not say;
      without it the size of the gap alone cannot tell int8 from a stale sampler.
    resamples: how many random halves of the rows are diagnosed for the confidence.
    seed: of the drawing.

  Returns:
    `Report`, with exactly one verdict.

  >>> from tis_jax.doctor import from_arrays
  >>> rng = np.random.default_rng(0)
  >>> sampler = -rng.exponential(1.0, (16, 12))
  >>> diagnose(from_arrays(sampler + 1e-6, sampler)).verdict
  'healthy'
  >>> diagnose(from_arrays(np.roll(sampler, 1, axis=1), sampler)).verdict
  'shifted_tokens'
  """
  if sampler_dtype:
    dump = dataclasses.replace(dump, sampler_dtype=sampler_dtype)
  suspicions = examine(dump)
  verdict = decide(suspicions)
  again = _resampled(dump, resamples, seed)
  agreed = [verdict == decide(found) for found in again]
  confidence = float(np.mean(agreed)) if agreed else float("nan")
  return Report(
    verdict=verdict,
    confidence=confidence,
    findings=tuple(_findings(dump, suspicions, verdict, again)),
    scale=Evidence(dump).scale,
    source=dump.source,
    columns=dict(dump.columns),
    notes=dump.notes,
  )


def examine(dump: Dump) -> list[Suspicion]:
  """What every test says, in the order in which they decide."""
  evidence = Evidence(dump)
  tokens = len(evidence.tokens)
  if tokens < LEAST_TOKENS:
    text = f"{tokens} tokens have both log-probs, and {LEAST_TOKENS} are needed"
    early = [x for test in (unlogged, filled) for x in test(evidence)] if tokens else []
    nothing = np.zeros(dump.shape)
    return [
      *(x for x in early if x.found),
      Suspicion("unclear", 1.0, 1.0, "too few tokens", text, nothing),
    ]
  return [suspicion for test in _ORDER for suspicion in test(evidence)]


def decide(suspicions: list[Suspicion]) -> str:
  """The verdict: the first fault that is found; unclear without any."""
  for suspicion in suspicions:
    if suspicion.found and suspicion.kind not in REMARKS:
      return suspicion.kind
  return "unclear"


def _resampled(dump: Dump, times: int, seed: int) -> list[list[Suspicion]]:
  """The suspicions in halves of the rows.

  Not in rows drawn with replacement: a row that stands twice repeats its log-probs to
  the last digit, as filled-in values do.
  """
  rng = np.random.default_rng(seed)
  rows = np.flatnonzero(dump.mask.any(axis=1))
  if len(rows) < 4:
    return []
  per_row = dump.mask.sum() / len(rows)
  if dump.mask.sum() < 4 * LEAST_TOKENS:
    return []
  count = max(2, min(len(rows) // 2, int(RESAMPLED_TOKENS / per_row)))
  halves = (rng.choice(rows, count, replace=False) for _ in range(times))
  return [examine(dump.take(np.sort(half))) for half in halves]


def _findings(dump, suspicions, verdict, again):
  """The verdict's first, then the others by score; one for each kind."""
  best: dict[str, Suspicion] = {}
  for suspicion in suspicions:
    if suspicion.kind not in best or suspicion.score > best[suspicion.kind].score:
      best[suspicion.kind] = suspicion
  if verdict not in best:
    nothing = np.zeros(dump.shape)
    best[verdict] = Suspicion(
      verdict, 1.0, 1.0, "no test", "no test says what it is", nothing
    )
  ordered = sorted(best.values(), key=lambda x: (x.kind != verdict, -x.score))
  for suspicion in ordered:
    seen = [any(x.kind == suspicion.kind and x.found for x in found) for found in again]
    cause = CAUSES[suspicion.kind]
    yield Finding(
      kind=suspicion.kind,
      score=suspicion.score,
      statistic=float(suspicion.statistic),
      threshold=float(suspicion.threshold),
      measured=suspicion.measured,
      confidence=float(np.mean(seen)) if seen else float("nan"),
      evidence=suspicion.evidence,
      rows=transcripts(dump, suspicion.where),
      means=cause.means,
      cause=cause.usual,
      do=cause.do,
      link=cause.link,
    )


def transcripts(dump: Dump, where: np.ndarray) -> tuple[Transcript, ...]:
  """The rows that show a fault best, each around its clearest place."""
  strength = np.where(dump.mask, where, 0.0)
  total = strength.sum(axis=1)
  if not total.any():
    return ()
  order = [int(row) for row in np.argsort(total, kind="stable")[::-1] if total[row] > 0]
  return tuple(_transcript(dump, row, strength[row]) for row in order[:SHOWN_ROWS])


def _transcript(dump: Dump, row: int, strength: np.ndarray) -> Transcript:
  columns = np.flatnonzero(dump.mask[row])
  top = int(np.searchsorted(columns, strength.argmax()))
  start = int(np.clip(top - SHOWN_TOKENS // 2, 0, max(len(columns) - SHOWN_TOKENS, 0)))
  bar = 0.25 * strength.max()
  number = lambda x: round(float(x), 6) if np.isfinite(x) else None
  places = tuple(
    Place(
      column=int(column),
      token=None if dump.tokens is None else int(dump.tokens[row, column]),
      old_logp=number(dump.old_logp[row, column]),
      sampler_logp=number(dump.sampler_logp[row, column]),
      marked=bool(strength[column] > 0 and strength[column] >= bar),
    )
    for column in columns[start : start + SHOWN_TOKENS]
  )
  return Transcript(row, len(columns), places)
