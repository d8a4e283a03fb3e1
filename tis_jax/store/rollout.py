"""The rollout record: what one sampler batch leaves behind, and its bytes.

```
"TISROLL1" | crc32 | header length | header (JSON) | arrays
```

Both numbers are little-endian uint32, the checksum covers everything after itself, and
every array starts at a multiple of 8 bytes, little-endian, row-major. No pickle: a
record can be read by any language, and cannot run code.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from tis_jax.logprobs.contract import Sampling
from tis_jax.store.errors import (
  CorruptRolloutError,
  RolloutSchemaError,
  RolloutShapeError,
  TruncatedRolloutError,
)

ROLLOUT_SCHEMA = 1

_MAGIC = b"TISROLL1"
_FRAME = struct.Struct("<II")
_START = len(_MAGIC) + _FRAME.size
_ALIGNMENT = 8

# Field -> (little-endian dtype, rank). The order is that of the bytes.
ARRAYS: Mapping[str, tuple[str, int]] = {
  "prompts": ("<i4", 2),
  "prompt_mask": ("|b1", 2),
  "tokens": ("<i4", 2),
  "mask": ("|b1", 2),
  "sampler_logp": ("<f4", 2),
  "versions": ("<i4", 2),
  "rewards": ("<f4", 1),
  "group_ids": ("<i4", 1),
  "prompt_ids": ("<i4", 1),
  "finish_reasons": ("|i1", 1),
  "kept_mass": ("<f4", 2),
  "kept_tokens": ("<i4", 3),
  "greedy_rewards": ("<f4", 1),
  "named_rewards": ("<f4", 2),
  "top_tokens": ("<i4", 3),
  "top_logp": ("<f4", 3),
}
OPTIONAL = frozenset(
  {
    "kept_mass",
    "kept_tokens",
    "greedy_rewards",
    "named_rewards",
    "top_tokens",
    "top_logp",
  }
)


@dataclasses.dataclass(frozen=True)
class Header:
  """What a record says of itself; the store fills in the last four on writing.

  Attributes:
    version: the newest policy version that generated a token of it.
    sampling: how it was sampled (`tis_jax.logprobs.Sampling`).
    run: id of the run it was made for.
    writer: name of the sampler.
    seq: its place in the writer's sequence, from 0.
    created: seconds since 1970, by the writer's clock.
  """

  version: int
  sampling: Sampling
  run: str = ""
  writer: str = ""
  seq: int = -1
  created: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
  """One batch of responses: B rows, prompts padded to P, responses to T tokens.

  Attributes:
    prompts: int32 [B, P], left-padded.
    prompt_mask: bool [B, P].
    tokens: int32 [B, T], right-padded.
    mask: bool [B, T], the tokens that were sampled.
    sampler_logp: float32 [B, T], nats; meaningless where `mask` is False.
    versions: int32 [B, T], policy version that sampled the token.
    rewards: float32 [B].
    group_ids: int32 [B], equal for responses to one prompt; unique in the record only.
    prompt_ids: int32 [B], the example in the task's split.
    finish_reasons: int8 [B], 0 for a stop token, 1 for the length limit.
    header: see `Header`.
    kept_mass: float32 [B, T], probability of the tokens that top-k, top-p and min-p
      kept; None where everything was.
    kept_tokens: int32 [B, T, K], which those were, padded with -1 and all -1 where they
      did not fit; None where they were not recorded.
    greedy_rewards: float32 [B], of the greedy answer to each row's prompt; None where
      nobody asked for one.
    named_rewards: float32 [B, K], the task's further rewards in its order; None where
      nobody asked for them.
    top_tokens: int32 [B, T, K], the most probable tokens at each place, in any order,
      padded with -1; None where nobody asked for them.
    top_logp: float32 [B, T, K], their log-probs, made as `sampler_logp` is; -inf for
      padding.
  """

  prompts: np.ndarray
  prompt_mask: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray
  sampler_logp: np.ndarray
  versions: np.ndarray
  rewards: np.ndarray
  group_ids: np.ndarray
  prompt_ids: np.ndarray
  finish_reasons: np.ndarray
  header: Header
  kept_mass: np.ndarray | None = None
  kept_tokens: np.ndarray | None = None
  greedy_rewards: np.ndarray | None = None
  named_rewards: np.ndarray | None = None
  top_tokens: np.ndarray | None = None
  top_logp: np.ndarray | None = None

  @property
  def shape(self) -> tuple[int, int, int]:
    """(B, P, T)."""
    return (*self.prompts.shape, self.tokens.shape[1])

  def arrays(self) -> dict[str, np.ndarray]:
    """The arrays that are there, by name."""
    fields = {name: getattr(self, name) for name in ARRAYS}
    return {name: value for name, value in fields.items() if value is not None}


def check_structure(rollout: Rollout) -> None:
  """Refuses arrays whose dtypes or shapes do not fit each other.

  Raises:
    RolloutShapeError: naming the array.
  """
  for name, (dtype, rank) in ARRAYS.items():
    value = getattr(rollout, name)
    if value is None and name in OPTIONAL:
      continue
    if not isinstance(value, np.ndarray) or value.dtype != np.dtype(dtype):
      found = getattr(value, "dtype", type(value).__name__)
      raise RolloutShapeError(f"{name} is {found}, wants {np.dtype(dtype).name}")
    if value.ndim != rank:
      raise RolloutShapeError(f"{name} has shape {value.shape}, wants rank {rank}")
  rows, prompt_length, length = rollout.shape
  for name, value in rollout.arrays().items():
    wanted = (rows,)
    if name == "named_rewards":
      wanted += value.shape[1:]
    elif value.ndim > 1:
      wanted += (prompt_length if name.startswith("prompt") else length,)
    if value.shape[:2] != wanted:
      raise RolloutShapeError(f"{name} has shape {value.shape}, wants {wanted}")
  top = [x.shape for name, x in rollout.arrays().items() if name.startswith("top_")]
  if len(top) == 1 or len(set(top)) > 1:
    raise RolloutShapeError(f"top_tokens and top_logp go together, got shapes {top}")
  if rows == 0 or length == 0:
    raise RolloutShapeError(f"no tokens: {rows} rows of {length}")


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
  check_structure(rollout)
  arrays = rollout.arrays()
  header = {
    "schema": ROLLOUT_SCHEMA,
    "header": dataclasses.asdict(rollout.header),
    "arrays": {name: list(value.shape) for name, value in arrays.items()},
  }
  text = json.dumps(header, separators=(",", ":")).encode()
  parts = [text, _padding(_START + len(text))]
  for name, value in arrays.items():
    data = value.astype(ARRAYS[name][0], copy=False).tobytes()
    parts += [data, _padding(len(data))]
  body = b"".join((struct.pack("<I", len(text)), *parts))
  return b"".join((_MAGIC, struct.pack("<I", zlib.crc32(body)), body))


def decode(data: bytes) -> Rollout:
  """The record in `data`; its arrays are read-only views of it.

  Args:
    data: from `encode`, possibly after an accident.

  Returns:
    The rollout, checked for structure and not for values (`checks.check_values`).

  Raises:
    TruncatedRolloutError: bytes are missing at the end.
    CorruptRolloutError: any other damage.
    RolloutSchemaError: another version of the library wrote it.
    RolloutShapeError: the arrays do not fit each other.
  """
  if len(data) < _START:
    raise TruncatedRolloutError(f"{len(data)} bytes are less than a record's frame")
  if data[: len(_MAGIC)] != _MAGIC:
    raise CorruptRolloutError(f"starts with {data[: len(_MAGIC)]!r}, not {_MAGIC!r}")
  checksum, length = _FRAME.unpack_from(data, len(_MAGIC))
  if len(data) < _START + length:
    raise TruncatedRolloutError(
      f"the header wants {length} bytes, {len(data) - _START} are there"
    )
  header = _header(data[_START : _START + length])
  offsets, end = _offsets(header["arrays"], _START + length)
  if len(data) < end:
    raise TruncatedRolloutError(f"{len(data)} bytes of {end}")
  body = memoryview(data)[len(_MAGIC) + 4 :]
  if len(data) > end or zlib.crc32(body) != checksum:
    raise CorruptRolloutError("the checksum does not match the bytes")
  try:
    fields = {
      name: np.frombuffer(data, ARRAYS[name][0], count, offset).reshape(shape)
      for name, (offset, count, shape) in offsets.items()
    }
    sampling = Sampling(**header["header"].pop("sampling"))
    rollout = Rollout(**fields, header=Header(**header["header"], sampling=sampling))
  except (TypeError, KeyError, AttributeError) as error:
    raise CorruptRolloutError(f"the header does not describe a record: {error}") from (
      error
    )
  check_structure(rollout)
  return rollout


def _padding(length: int) -> bytes:
  return bytes(-length % _ALIGNMENT)


def _header(text: bytes) -> dict:
  try:
    header = json.loads(text)
    schema = header["schema"]
  except (ValueError, KeyError, TypeError) as error:
    raise CorruptRolloutError(f"the header cannot be read: {error}") from error
  if schema != ROLLOUT_SCHEMA:
    raise RolloutSchemaError(
      f"record schema {schema}; this version of tis_jax reads {ROLLOUT_SCHEMA}"
    )
  if not isinstance(header.get("arrays"), dict):
    raise CorruptRolloutError("the header lists no arrays")
  return header


def _offsets(arrays: dict, start: int):
  """Where each array lies: {name: (offset, items, shape)}, and where the last ends."""
  offsets = {}
  offset = start + len(_padding(start))
  for name, shape in arrays.items():
    sizes = shape if isinstance(shape, list) else [-1]
    if name not in ARRAYS or not all(isinstance(n, int) and n >= 0 for n in sizes):
      raise CorruptRolloutError(f"the header lists an array {name!r} of shape {shape}")
    count = int(np.prod(sizes, dtype=np.int64))
    offsets[name] = (offset, count, tuple(sizes))
    size = count * np.dtype(ARRAYS[name][0]).itemsize
    offset += size + len(_padding(size))
  return offsets, offset
