"""One JSON object a line and row: NeMo-RL, prime-rl, verl, or anybody's."""

import json
from pathlib import Path

from tis_jax.doctor import columns
from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.readers.tables import of_rows

LINE_LIMIT = 64 << 20
"""Bytes of a line."""
NUMBERS_LIMIT = 40_000_000
"""Log-probs that are read; the rows behind them are left out, in a note."""


def read_jsonl(path: Path) -> Dump:
  """The rows of the file, as many as `NUMBERS_LIMIT` lets in.

  Raises:
    DumpError: a line that is no JSON object, or no log-probs of two policies.
  """
  rows, numbers, names, notes = [], 0, set(), ()
  with path.open("rb") as file:
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
      number += 1
      if len(line) > LINE_LIMIT:
        raise DumpError(f"{path}, line {number} has more than {LINE_LIMIT:,} bytes")
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise DumpError(f"{path}, line {number} is no JSON: {error}") from error
      if not isinstance(row, dict):
        raise DumpError(f"{path}, line {number} is no JSON object, a row a line")
      names |= row.keys()
      kept = columns.match(row.keys()).values()
      rows.append({name: row[name] for name in kept})
      numbers += sum(len(x) for x in rows[-1].values() if isinstance(x, list))
      if numbers > 3 * NUMBERS_LIMIT:
        notes = (f"the first {len(rows):,} rows were read, and no more",)
        break
  if not rows:
    raise DumpError(f"{path} has no rows")
  return of_rows(rows, names, str(path), notes, _hint(names))


def _hint(names) -> str:
  """What to save instead, for dumps that are known to lack log-probs."""
  if {"input", "output", "score"} <= names:
    return (
      "; verl's rollout dump is text and scores: save the batch's rollout_log_probs, "
      "old_log_probs and response_mask with numpy.savez beside it"
    )
  return ""
