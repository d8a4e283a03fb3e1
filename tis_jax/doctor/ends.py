"""Gaps that stand at the ends of rows, or at a few rows only."""

import numpy as np

from tis_jax.doctor.evidence import Evidence
from tis_jax.doctor.odds import moved
from tis_jax.doctor.suspicion import Suspicion, places

AT_ENDS = 0.08
"""Share of rows whose last token (or whose start) stands out."""
CONTRAST = 8.0
"""How much more often there than elsewhere."""
SURE = 10.0
"""Nats by which the tokens are likelier if those there stand out at their own rate."""
FAR_OFF = 0.5
"""Nats that a token is off by at least if it stands out, and log-odds too."""
CONCENTRATED = 0.8
"""Share of the whole gap that a few rows or places carry."""
FEW = 0.1
"""Share of rows or tokens that counts as a few."""


def at_ends(evidence: Evidence) -> list[Suspicion]:
  """Last tokens, or first ones, that stand out from a dump that agrees elsewhere."""
  tokens = evidence.tokens
  if len(tokens) < 50:
    return []
  gap = np.abs(tokens.gap)
  odds = moved(tokens)  # first tokens are less sure than others, and further apart
  length = tokens.place + tokens.from_end + 1
  long = length >= 3
  last = long & (tokens.from_end == 0)
  inner = long & (tokens.from_end > 0) & (tokens.place > 0)
  found = []
  if last.any() and inner.sum() >= 20:
    found += _stands_out(
      evidence,
      "missing_end",
      gap,
      odds,
      last,
      inner,
      "the last token of its row",
    )
  for width in (1, 2, 4, 8):
    head = (length >= 2 * width + 1) & (tokens.place < width)
    rest = (length >= 2 * width + 1) & (tokens.place >= width) & (tokens.from_end > 0)
    if head.any() and rest.sum() >= 20:
      words = "first token" if width == 1 else f"first {width} tokens"
      found += _stands_out(
        evidence,
        "prompt_in_mask",
        gap,
        odds,
        head,
        rest,
        f"among the {words} of its row",
      )
  best: dict[str, Suspicion] = {}
  for suspicion in found:
    if suspicion.kind not in best or suspicion.score > best[suspicion.kind].score:
      best[suspicion.kind] = suspicion
  return list(best.values())


def _stands_out(evidence, kind, gap, odds, here, elsewhere, words) -> list[Suspicion]:
  """Whether far tokens are many times as frequent here as elsewhere."""
  bar = max(FAR_OFF, 10 * float(np.median(odds[elsewhere])))
  far = (gap > FAR_OFF) & (odds > bar)
  share, usual = float(far[here].mean()), float(far[elsewhere].mean())
  floor = 1 / (elsewhere.sum() + 1)
  if share < AT_ENDS or share / max(usual, floor) < CONTRAST:
    return []
  if here.sum() * divergence(share, max(usual, floor)) < SURE:
    return []
  tokens = evidence.tokens
  return [
    Suspicion(
      kind,
      share,
      AT_ENDS,
      "share of such tokens that stand out",
      f"{far[here].sum():,} of {here.sum():,} tokens that are {words} are more than "
      f"{FAR_OFF:g} nats apart, and {bar:.2g} in log-odds, and {usual:.2%} of others",
      places(evidence.dump.shape, tokens, np.where(here & far, gap, 0.0)),
    )
  ]


def divergence(share: float, usual: float) -> float:
  """How much likelier a token makes a rate that is seen than another, nats.

  >>> round(divergence(0.5, 0.01), 2)
  1.61
  """
  part = lambda p, q: p * np.log(p / q) if p > 0 else 0.0
  return float(part(share, usual) + part(1 - share, 1 - usual))


def few(evidence: Evidence) -> list[Suspicion]:
  """Remarks: a gap that a few rows, or a few tokens, carry nearly all of."""
  tokens = evidence.tokens
  gap = np.abs(tokens.gap)
  if len(tokens) < 50 or gap.max(initial=0) < 0.3:
    return []
  by_row = np.bincount(tokens.row, gap, minlength=len(evidence.dump.mask))
  found = []
  rows = by_row[np.bincount(tokens.row, minlength=len(by_row)) > 0]
  share, number = carried(rows)
  if len(rows) >= 20:
    most = np.argsort(by_row)[::-1][:number]
    chosen = np.isin(tokens.row, most)
    found.append(
      Suspicion(
        "few_rows",
        share,
        CONCENTRATED,
        f"share of the gap in {FEW:.0%} of the rows",
        f"{number:,} of {len(rows):,} rows carry {share:.0%} of the gap",
        places(evidence.dump.shape, tokens, np.where(chosen, gap, 0.0)),
      )
    )
  share, number = carried(gap, FEW / 5)
  bar = np.sort(gap)[-number]
  found.append(
    Suspicion(
      "few_positions",
      share,
      CONCENTRATED,
      f"share of the gap in {FEW / 5:.0%} of the tokens",
      f"{number:,} of {len(gap):,} tokens carry {share:.0%} of the gap",
      places(evidence.dump.shape, tokens, np.where(gap >= bar, gap, 0.0)),
    )
  )
  return [x for x in found if x.found]


def carried(values: np.ndarray, part: float = FEW) -> tuple[float, int]:
  """The share of a sum that its largest items carry, and how many those are.

  >>> carried(np.array([9.0] + [0.1] * 9))
  (0.909..., 1)
  """
  number = max(1, int(part * len(values)))
  total = values.sum()
  return (float(np.sort(values)[-number:].sum() / total) if total else 0.0), number
