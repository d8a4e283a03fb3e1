"""A dump: what two policies say of the same tokens, whoever wrote it down."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tis_jax.doctor.errors import DumpError

TOKENS_LIMIT = 1 << 27
"""Places that a dump may have, padding included: 128 million."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dump:
  """Log-probs of the same tokens under learner and sampler, `[B, T]` in numpy.

  Attributes:
    old_logp: float64 `[B, T]`, the learner's, in nats; NaN where it is not known.
    sampler_logp: float64 `[B, T]`, what the engine that sampled said; NaN likewise.
    mask: bool `[B, T]`, the tokens that train.
    tokens: int64 `[B, T]`, their ids, or None.
    sampler_tokens: int64 `[B, T]`, the ids that the sampler drew, where the dump has
      them apart from those that the learner scored.
    prompts: int64 `[B, P]`, -1 for padding, or None.
    versions: int64 `[B, T]`, version of the params that sampled each token, or None.
    learner_version: of the params that `old_logp` is of, or None.
    rewards: float64 `[B]`, or None.
    advantages: float64 `[B, T]`, or None.
    entropy: float64 `[B, T]`, the learner's, in nats, or None.
    group_ids: int64 `[B]`, or None.
    temperature: that was sampled at, or None.
    sampler_dtype: in words, such as "bfloat16"; "" where nobody said.
    source: what was read.
    columns: which column of the source became which field.
    notes: sentences on what was assumed or left out.
  """

  old_logp: np.ndarray
  sampler_logp: np.ndarray
  mask: np.ndarray
  tokens: np.ndarray | None = None
  sampler_tokens: np.ndarray | None = None
  prompts: np.ndarray | None = None
  versions: np.ndarray | None = None
  learner_version: int | None = None
  rewards: np.ndarray | None = None
  advantages: np.ndarray | None = None
  entropy: np.ndarray | None = None
  group_ids: np.ndarray | None = None
  temperature: float | None = None
  sampler_dtype: str = ""
  source: str = ""
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  @property
  def shape(self) -> tuple[int, int]:
    """(B, T)."""
    return self.mask.shape

  @property
  def staleness(self) -> np.ndarray | None:
    """Int64 `[B, T]`: versions between sampler and learner; None if not known."""
    if self.versions is None or self.learner_version is None:
      return None
    return self.learner_version - self.versions

  def take(self, rows) -> "Dump":
    """The dump of some of its rows, by numbers or a bool mask."""
    by_row = {
      field.name: value[rows]
      for field in dataclasses.fields(self)
      if isinstance(value := getattr(self, field.name), np.ndarray)
    }
    return dataclasses.replace(self, **by_row)


_PADDING = {"tokens": -1, "sampler_tokens": -1, "prompts": -1, "versions": -1}
_FLOATS = ("old_logp", "sampler_logp", "advantages", "entropy")
_IDS = ("tokens", "sampler_tokens", "versions")


def from_arrays(old_logp, sampler_logp, mask=None, **more: Any) -> Dump:
  """A dump of arrays, or of rows of different lengths.

  Args:
    old_logp: `[B, T]`, or B rows, the learner's log-probs in nats.
    sampler_logp: the same of the sampler.
    mask: the tokens that train, bool or 0/1; by default all there are.
    **more: any other field of `Dump`; `[B, T]` ones as arrays or rows.

  Raises:
    DumpError: shapes that differ, no token, no numbers.

  >>> dump = from_arrays([[-0.5, -1.0], [-0.2]], [[-0.6, -1.0], [-0.2]])
  >>> dump.shape, dump.mask.tolist()
  ((2, 2), [[True, True], [True, False]])
  """
  learner, there = _padded("old_logp", old_logp, np.nan, np.float64)
  sampler, also = _padded("sampler_logp", sampler_logp, np.nan, np.float64)
  if learner.shape != sampler.shape:
    raise DumpError(
      f"old_logp is {list(learner.shape)} and sampler_logp {list(sampler.shape)}: they "
      "must be of the same tokens, [rows, tokens]"
    )
  taken = there & also
  if mask is not None:
    given, _ = _padded("mask", mask, 0, np.float64)
    taken = taken & (_like("mask", given, learner) != 0)
  if not taken.any():
    raise DumpError("no token is left: the mask is False everywhere")
  fields = {name: value for name, value in more.items() if value is not None}
  for name in (*_FLOATS[2:], *_IDS):
    if name in fields:
      kind = np.int64 if name in _IDS else np.float64
      value, _ = _padded(name, fields[name], _PADDING.get(name, np.nan), kind)
      fields[name] = _like(name, value, learner)
  if "prompts" in fields:
    fields["prompts"], _ = _padded("prompts", fields["prompts"], -1, np.int64)
  for name, kind in (("rewards", np.float64), ("group_ids", np.int64)):
    if name in fields:
      fields[name] = _by_row(name, fields[name], kind, len(learner))
  if "learner_version" in fields:
    fields["learner_version"] = int(fields["learner_version"])
  return Dump(learner, sampler, taken, **fields)


def _padded(name: str, value, fill, dtype) -> tuple[np.ndarray, np.ndarray]:
  """`[B, T]` of a table or of rows, and which places a row has."""
  if isinstance(value, np.ndarray) and value.dtype != object:
    rows = value
  else:
    rows = _rows(name, value)
  if isinstance(rows, np.ndarray):
    if rows.ndim == 1:
      rows = rows[None]
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
      raise DumpError(f"{name} must be numbers [rows, tokens], got {_seen(rows)}")
    if rows.size > TOKENS_LIMIT:
      raise DumpError(f"{name} has {rows.size:,} places, more than {TOKENS_LIMIT:,}")
    return rows.astype(dtype), np.ones(rows.shape, bool)
  width = max((len(row) for row in rows), default=0)
  if len(rows) * width > TOKENS_LIMIT:
    raise DumpError(
      f"{name}: {len(rows):,} rows padded to {width:,} tokens are more than "
      f"{TOKENS_LIMIT:,} places; give fewer rows"
    )
  table = np.full((len(rows), width), fill, dtype)
  there = np.zeros(table.shape, bool)
  for i, row in enumerate(rows):
    table[i, : len(row)] = row
    there[i, : len(row)] = True
  return table, there


def _rows(name: str, value) -> np.ndarray | list[np.ndarray]:
  if not isinstance(value, Sequence) and not hasattr(value, "__array__"):
    raise DumpError(f"{name} must be rows of numbers, got {type(value).__name__}")
  try:
    rows = [np.asarray(row) for row in value]
  except (ValueError, TypeError) as error:
    raise DumpError(f"{name} is not rows of numbers: {error}") from error
  if not rows:
    raise DumpError(f"{name} has no rows")
  if all(row.ndim == 0 for row in rows):
    return np.asarray(rows)
  for row in rows:
    if row.ndim != 1 or (row.size and row.dtype.kind not in "fiub"):
      raise DumpError(f"a row of {name} is no list of numbers, but {_seen(row)}")
  return rows


def _like(name: str, value: np.ndarray, other: np.ndarray) -> np.ndarray:
  """`value`, if it is of the tokens of `other`, cut or padded on the right to it."""
  if value.shape != other.shape:
    raise DumpError(
      f"{name} is {list(value.shape)} and the log-probs {list(other.shape)}: they must "
      "be of the same tokens"
    )
  return value


def _by_row(name: str, value, dtype, rows: int) -> np.ndarray:
  found = np.asarray(value)
  if found.shape != (rows,) or found.dtype.kind not in "fiub":
    raise DumpError(f"{name} must be one number a row ({rows}), got {_seen(found)}")
  return found.astype(dtype)


def _seen(array: np.ndarray) -> str:
  return f"{array.dtype} of shape {list(array.shape)}"
