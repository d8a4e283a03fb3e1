"""A record's bytes.

```
"TISROLL1" | crc32 | header length | header (JSON) | arrays
```

Both numbers are little-endian uint32, the checksum covers everything after itself, and
every array starts at a multiple of 8 bytes, little-endian, row-major, in the order in
which the header lists it. The header is

```
{"schema": 2,
 "header": {"version": 7, "sampling": {"temperature": 1.0, ...}, "run": ..., ...},
 "arrays": {"prompts": [64, 120], ...}}
```

with every field of `Header` and `Sampling` written out: a law that the writer did not
name is not guessed. Schema 1, the same without some fields and arrays, is read as well.
No pickle: a record can be read by any language, and cannot run code.
"""

import dataclasses
import json
import math
import struct
from typing import Any

import numpy as np

from tis_jax.logprobs.contract import Sampling
from tis_jax.rollouts.checksum import checksum
from tis_jax.rollouts.errors import (
  AmbiguousLawError,
  CorruptRolloutError,
  RolloutSchemaError,
  RolloutShapeError,
  TruncatedRolloutError,
)
from tis_jax.rollouts.record import ARRAYS, Header, Rollout, check_structure

SCHEMA = 2

_MAGIC = b"TISROLL1"
_FRAME = struct.Struct("<II")
_START = len(_MAGIC) + _FRAME.size
_ALIGNMENT = 8
_LARGEST = 2**60
# What a header may be of; JSON knows no more, and no bool is a number here.
_KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}


def encode(rollout: Rollout) -> bytes:
  """A record's bytes; the layout is at the top of this file.

  Args:
    rollout: arrays of the dtypes and shapes that `Rollout` lists.

  Returns:
    bytes that `decode` takes.

  Raises:
    RolloutShapeError: an array has another dtype or shape. Values are not looked at: a
      record with NaN is evidence, and the reader's to set aside.

  >>> import numpy as np
  >>> row, flag = np.zeros((1, 2), np.int32), np.ones((1, 2), bool)
  >>> one = np.zeros(1, np.int32)
  >>> rollout = Rollout(row, flag, row, flag, np.float32(row), row, np.float32(one),
  ...                   one, one, np.int8(one), Header(3, Sampling()))
  >>> decode(encode(rollout)).header.version
  3
  """
  return b"".join(encoded(rollout))


def encoded(rollout: Rollout) -> list[bytes | memoryview]:
  """A record's bytes in pieces, most of them views of its arrays: see `encode`."""
  check_structure(rollout)
  arrays = rollout.arrays()
  header = {
    "schema": SCHEMA,
    "header": dataclasses.asdict(rollout.header),
    "arrays": {name: list(value.shape) for name, value in arrays.items()},
  }
  text = json.dumps(header, separators=(",", ":")).encode()
  parts: list[bytes | memoryview] = [text, _padding(_START + len(text))]
  for name, value in arrays.items():
    data = np.ascontiguousarray(value, ARRAYS[name][0]).reshape(-1).view(np.uint8).data
    parts += [data, _padding(len(data))]
  parts = [struct.pack("<I", len(text)), *parts]
  return [_MAGIC, struct.pack("<I", checksum(parts)), *parts]


def decode(data: bytes) -> Rollout:
  """The record in `data`; its arrays are read-only views of it.

  Args:
    data: from `encode`, of this schema or an earlier one, possibly after an accident.

  Returns:
    The rollout, checked for structure and not for values (`validate`).

  Raises:
    TruncatedRolloutError: bytes are missing at the end.
    CorruptRolloutError: any other damage.
    RolloutSchemaError: a later version of the library wrote it.
    AmbiguousLawError: its writer did not say how it was sampled.
    RolloutShapeError: the arrays do not fit each other.
  """
  if len(data) < _START:
    raise TruncatedRolloutError(f"{len(data)} bytes are less than a record's frame")
  if data[: len(_MAGIC)] != _MAGIC:
    raise CorruptRolloutError(f"starts with {data[: len(_MAGIC)]!r}, not {_MAGIC!r}")
  crc, length = _FRAME.unpack_from(data, len(_MAGIC))
  if len(data) < _START + length:
    raise TruncatedRolloutError(
      f"the header wants {length} bytes, {len(data) - _START} are there"
    )
  told = _told(data[_START : _START + length])
  offsets, end = _offsets(told.get("arrays"), _START + length)
  if len(data) < end:
    raise TruncatedRolloutError(f"{len(data)} bytes of {end}")
  body = memoryview(data)[len(_MAGIC) + 4 :]
  if len(data) > end or checksum([body]) != crc:
    raise CorruptRolloutError("the checksum does not match the bytes")
  header = _header(told)
  fields = {name: _array(data, name, *where) for name, where in offsets.items()}
  try:
    rollout = Rollout(**fields, header=header)
  except TypeError as error:
    raise CorruptRolloutError(f"the header does not describe a record: {error}") from (
      error
    )
  check_structure(rollout)
  return rollout


def _padding(length: int) -> bytes:
  return bytes(-length % _ALIGNMENT)


def _told(text: bytes) -> dict[str, Any]:
  try:
    told = json.loads(text)
    schema = told["schema"]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise CorruptRolloutError(f"the header cannot be read: {error}") from error
  if schema not in range(1, SCHEMA + 1):
    raise RolloutSchemaError(
      f"record schema {schema!r}; this version of tis_jax reads 1 to {SCHEMA}"
    )
  return told


def _header(told: dict[str, Any]) -> Header:
  """The header, every field of the type that it must have."""
  header = told.get("header")
  if not isinstance(header, dict) or not isinstance(header.get("sampling"), dict):
    raise CorruptRolloutError("the header says nothing of a record")
  said = dict(header)
  law = said.pop("sampling")
  if told["schema"] > 1 and (unsaid := _names(Sampling) - law.keys()):
    raise AmbiguousLawError(
      f"the header does not say {', '.join(sorted(unsaid))} of its sampling"
    )
  sampling = Sampling(**_typed(Sampling, law))
  return Header(sampling=sampling, **_typed(Header, said))


def _names(kind: type) -> set[str]:
  return {field.name for field in dataclasses.fields(kind)}


def _typed(kind: type, said: dict[str, Any]) -> dict[str, Any]:
  """`said`, if it may become a `kind`."""
  fields = {field.name: field for field in dataclasses.fields(kind)}
  fields.pop("sampling", None)
  for name, value in said.items():
    if name not in fields:
      raise CorruptRolloutError(f"the header has an unknown field {name!r}")
    wanted = fields[name].type
    kinds = _KINDS[wanted] if isinstance(wanted, type) else ()
    if type(value) not in kinds or (type(value) is int and abs(value) > _LARGEST):
      raise CorruptRolloutError(f"the header's {name} is {value!r:.40}")
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and name not in said:
      raise CorruptRolloutError(f"the header has no {name}")
  return said


def _offsets(arrays: Any, start: int):
  """Where each array lies: {name: (offset, items, shape)}, and where the last ends."""
  if not isinstance(arrays, dict):
    raise CorruptRolloutError("the header lists no arrays")
  offsets = {}
  offset = start + len(_padding(start))
  for name, shape in arrays.items():
    sizes = shape if isinstance(shape, list) else [-1]
    sane = all(type(n) is int and 0 <= n <= _LARGEST for n in sizes)
    # numpy makes no array of such lengths, though another be 0 and nothing in it.
    sane = sane and (0 not in sizes or math.prod(n or 1 for n in sizes) <= _LARGEST)
    if name not in ARRAYS or not sane:
      raise CorruptRolloutError(
        f"the header lists an array {name!r:.40} of shape {shape!r:.40}"
      )
    if len(sizes) != len(ARRAYS[name][1]):
      raise RolloutShapeError(f"{name} has shape {sizes}, wants {ARRAYS[name][1]}")
    count = math.prod(sizes)  # In Python's integers, which do not wrap.
    offsets[name] = (offset, count, tuple(sizes))
    size = count * np.dtype(ARRAYS[name][0]).itemsize
    offset += size + -size % _ALIGNMENT
  return offsets, offset


def _array(data: bytes, name: str, offset: int, count: int, shape: tuple) -> np.ndarray:
  dtype = np.dtype(ARRAYS[name][0])
  array = np.frombuffer(data, dtype, count, offset)
  if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
    raise CorruptRolloutError(f"{name} has bytes that are neither True nor False")
  return array.reshape(shape)
