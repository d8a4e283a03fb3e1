"""From columns or rows under a framework's names to a dump."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tis_jax.doctor import columns
from tis_jax.doctor.dump import Dump, from_arrays
from tis_jax.doctor.errors import DumpError

_BY_TOKEN = ("sampler_logp", "old_logp", "advantages", "entropy", "versions")
_IDS = ("tokens", "sampler_tokens")


def of_columns(
  arrays: Mapping[str, np.ndarray],
  taken: Mapping[str, str],
  names: Collection[str],
  source: str,
  notes: tuple[str, ...] = (),
  hint: str = "",
) -> Dump:
  """A dump of whole `[B, T]` arrays.

  Args:
    arrays: by field of `Dump`.
    taken: which column each was.
    names: of all columns there are.
    source: what was read, for messages.
    notes: on what was left out so far.
    hint: what to do if the log-probs of one side are not there.
  """
  if lacking := columns.missing(arrays.keys(), names):
    raise DumpError(f"{source}: {lacking}{hint}")
  given = dict(arrays)
  said = list(notes)
  try:
    for field in ("sampler_logp", "old_logp"):
      if given[field].dtype.kind in "iub":
        raise DumpError(f"{taken[field]!r} holds whole numbers, which are no log-probs")
    shape = np.atleast_2d(given["sampler_logp"]).shape
    given["mask"] = _mask(given, taken, shape, said)
    if (prompts := given.get("prompts")) is not None:
      held = given.get("prompt_mask")
      given["prompts"] = prompts if held is None else np.where(held != 0, prompts, -1)
    for field in ("advantages", "versions", "entropy"):
      value = given.get(field)
      if value is not None and value.shape == shape[:1]:
        given[field] = np.broadcast_to(value[:, None], shape)
    for field in _IDS:
      value = given.get(field)
      if value is not None and value.ndim == 2 and value.shape[1] > shape[1]:
        given[field] = value[:, -shape[1] :]
        said.append(f"of {taken[field]!r} the last {shape[1]} places were taken")
    _drop_what_does_not_fit(given, taken, shape, said)
    more: dict[str, Any] = {
      name: value
      for name, value in given.items()
      if name in {field.name for field in dataclasses.fields(Dump)}
      and name not in ("old_logp", "sampler_logp", "mask")
    }
    for name, kind in (("temperature", float), ("sampler_dtype", str)):
      if name in more:
        more[name] = kind(np.asarray(more[name]).reshape(-1)[0])
    if "learner_version" in more:
      more["learner_version"] = int(np.max(more["learner_version"]))
    return from_arrays(
      given["old_logp"],
      given["sampler_logp"],
      given["mask"],
      source=source,
      columns={field: name for field, name in taken.items() if field in given},
      notes=tuple(said),
      **more,
    )
  except DumpError as error:
    raise DumpError(f"{source}: {error}") from None


def _mask(given, taken, shape, said: list[str]) -> np.ndarray:
  """The mask of the dump, or the places where the sampler has a log-prob."""
  mask = given.get("mask")
  if mask is None:
    sampler = np.atleast_2d(given["sampler_logp"])
    mask = np.isfinite(sampler) & (sampler != 0)
    if "lengths" in given and np.ndim(given["lengths"]) == 1:
      mask &= np.arange(shape[1]) < np.asarray(given["lengths"])[:, None]
    said.append(
      f"there is no mask: places where {taken['sampler_logp']!r} is not 0 were taken"
    )
  mask = np.atleast_2d(mask)
  if mask.shape != shape and mask.ndim == 2 and mask.shape[1] > shape[1]:
    mask = mask[:, -shape[1] :]
    said.append(f"of {taken['mask']!r} the last {shape[1]} places were taken")
  if mask.shape != shape:
    raise DumpError(
      f"{taken['mask']!r} is {list(mask.shape)} and the log-probs {list(shape)}: they "
      "must be of the same tokens"
    )
  rows = given.get("sample_mask")
  if rows is not None and np.shape(rows) == shape[:1]:
    mask = (mask != 0) & (np.asarray(rows) != 0)[:, None]
  present = given.get("present")
  if present is not None and np.shape(present) == shape:
    given["sampler_logp"] = np.where(present != 0, given["sampler_logp"], np.nan)
  return mask != 0


def _drop_what_does_not_fit(given, taken, shape, said: list[str]) -> None:
  """Columns that are not needed do not stop the rest from being read."""
  by_token = {*_BY_TOKEN[2:], *_IDS}
  for field in list(given):
    if field not in (*by_token, "rewards", "group_ids"):
      continue
    wanted = shape if field in by_token else shape[:1]
    value = given[field]
    numeric = getattr(value, "dtype", np.dtype(object)).kind in "fiub"
    if not numeric or value.shape != wanted:
      said.append(f"{taken[field]!r} was left out: its shape is {list(value.shape)}")
      del given[field]


def of_rows(
  rows: Sequence[Mapping[str, Any]],
  names: Collection[str],
  source: str,
  notes: tuple[str, ...] = (),
  hint: str = "",
) -> Dump:
  """A dump of one mapping a row, whose log-probs may be of the response alone.

  Ids and masks that are longer than a row's log-probs are of prompt and response: their
  end is taken.
  """
  taken = columns.match({name for row in rows for name in row})
  if lacking := columns.missing(taken.keys(), names):
    raise DumpError(f"{source}: {lacking}{hint}")
  lengths = []
  for i, row in enumerate(rows):
    sizes = [_length(row.get(taken[f]), i, taken[f], source) for f in _BY_TOKEN[:2]]
    if sizes[0] != sizes[1]:
      raise DumpError(
        f"{source}, row {i}: {taken['sampler_logp']!r} has {sizes[0]} numbers and "
        f"{taken['old_logp']!r} {sizes[1]}"
      )
    lengths.append(sizes[0])
  width = max(lengths)
  arrays: dict[str, np.ndarray] = {}
  for field in (*_BY_TOKEN, *_IDS, "mask"):
    if field in taken:
      column = _column(rows, taken[field], lengths, width, field, source)
      if column is not None:
        arrays[field] = column
  if "mask" not in arrays and len(set(lengths)) > 1:
    places = np.arange(width) < np.array(lengths)[:, None]
    if not (arrays["sampler_logp"] == 0).any():
      arrays["mask"] = places
  for field in ("rewards", "group_ids", "sample_mask", "lengths", "learner_version"):
    values = [_number(row.get(taken[field])) for row in rows] if field in taken else []
    if values and None not in values:
      arrays[field] = np.array(values)
  for field in ("temperature", "sampler_dtype"):
    if field in taken and isinstance(rows[0].get(taken[field]), (int, float, str)):
      arrays[field] = np.array(rows[0][taken[field]])
  return of_columns(arrays, taken, names, source, notes)


def _length(value, row: int, name: str, source: str) -> int:
  if not isinstance(value, (list, tuple, np.ndarray)):
    raise DumpError(f"{source}, row {row}: {name!r} is no list of numbers")
  return len(value)


def _column(rows, name, lengths, width, field, source) -> np.ndarray | None:
  """`[B, T]` of a column of lists; None where some row has none that fits."""
  fill = np.nan if field in ("sampler_logp", "old_logp", "advantages", "entropy") else 0
  table = np.full((len(rows), width), fill, np.float64)
  for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
    value = row.get(name)
    if isinstance(value, (int, float)) and field in ("versions", "advantages"):
      table[i, :length] = value
      continue
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) < length:
      if field in _BY_TOKEN[:2]:
        raise DumpError(f"{source}, row {i}: {name!r} is no list of numbers")
      return None
    try:
      numbers = np.array(value, np.float64)  # None becomes NaN
    except (ValueError, TypeError) as error:
      if field in _BY_TOKEN[:2]:
        raise DumpError(
          f"{source}, row {i}: {name!r} holds what is no number: {error}"
        ) from error
      return None
    if numbers.ndim != 1:
      return None
    table[i, :length] = numbers[len(numbers) - length :]
  if field in _IDS or field == "versions":
    return np.where(np.isfinite(table), table, -1).astype(np.int64)
  return table


def _number(value) -> float | None:
  if isinstance(value, np.ndarray) and value.size == 1:
    value = value.reshape(-1)[0].item()
  return float(value) if isinstance(value, (bool, int, float)) else None
