"""Policy params in the store: arrays first, then a manifest, then LATEST moves.

```
params/v0000000007/<parameter>.0000   raw little-endian bytes, 32 MB at most
params/v0000000007/manifest           JSON: shapes, dtypes, checksums, info
params/LATEST                         JSON: {"version": 7}; moves by conditional write
```

A version is a publication's number: it only grows, and is never used twice, also when
the learner restarts from an older step.
"""

import dataclasses
import hashlib
import json
import re
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tis_jax.store import blocks
from tis_jax.store.errors import AlreadyExistsError, ParamsGoneError, StoreError
from tis_jax.store.keyvalue import KeyValue, Read
from tis_jax.store.notes import note

LATEST = "params/LATEST"
_CHUNK_BYTES = 32 << 20
_VERSION = re.compile(r"params/v(\d{10})/(.+)", re.ASCII)
# Arrays at once: sums and copies are as many cores' work as there are, requests to an
# object store are waited for together.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A published version of the params.

  Attributes:
    version: its publication number.
    info: what the learner says with it: `cursor` (next sequence number per writer that
      the learner has not taken), `step`, ...
    arrays: per parameter `dtype`, `shape` and the `checksums` of its chunks, or its
      `blocks`, where several processes have published it.
    created: seconds since 1970, by the learner's clock.
  """

  version: int
  info: dict[str, Any]
  arrays: dict[str, dict[str, Any]]
  created: float

  @property
  def cursor(self) -> dict[str, int]:
    """Next sequence number per writer that the learner had not taken; may be empty."""
    return self.info.get("cursor", {})

  @property
  def digest(self) -> str:
    """Of the arrays, as `digest` makes it; "" where they came from several processes,
    none of which has seen a whole one."""
    if any("blocks" in said for said in self.arrays.values()):
      return ""
    return _digest(self.arrays)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
  """16 hexadecimal digits that tell these params from others.

  >>> digest({"w": np.zeros(2, np.float32)})
  '48b114933f8ad5a0'
  """
  return _digest({name: _described(np.asarray(x))[0] for name, x in arrays.items()})


def folder(version: int) -> str:
  return f"params/v{version:010d}/"


def write(
  kv: KeyValue, version: int, arrays: Mapping[str, np.ndarray], info: Mapping
) -> Manifest:
  """Writes a version's arrays and manifest; `move_latest` makes it known.

  Raises:
    AlreadyExistsError: the version has a manifest.
  """

  def put(name: str, array: np.ndarray) -> dict[str, Any]:
    said, pieces = _described(np.asarray(array))
    keys = (f"{folder(version)}{name}.{index:04d}" for index in range(len(pieces)))
    kv.put_many(dict(zip(keys, pieces, strict=True)))
    return said

  with ThreadPoolExecutor(_THREADS) as threads:
    said = threads.map(put, arrays, arrays.values())
    described = dict(zip(arrays, said, strict=True))
  return write_manifest(kv, version, described, info)


def write_manifest(
  kv: KeyValue, version: int, described: dict[str, Any], info: Mapping
) -> Manifest:
  """Makes a version complete, all of whose arrays are written.

  Raises:
    AlreadyExistsError: the version has a manifest.
  """
  manifest = Manifest(version, dict(info), described, time.time())
  text = json.dumps(dataclasses.asdict(manifest)).encode()
  if not kv.create(f"{folder(version)}manifest", text):
    raise AlreadyExistsError(
      f"store {kv.url}: version {version} is published already; is another learner "
      "writing to this store?"
    )
  return manifest


def move_latest(kv: KeyValue, version: int) -> None:
  """Points LATEST at `version`.

  Raises:
    AlreadyExistsError: it points there already, or at a newer one.
  """

  def moved(found: Read) -> bytes:
    if found.value is not None and latest_version(kv, found.value) >= version:
      raise AlreadyExistsError(
        f"store {kv.url}: cannot publish version {version}, the latest is "
        f"{latest_version(kv, found.value)}; is another learner writing to this store?"
      )
    return json.dumps({"version": version}).encode()

  kv.update(LATEST, moved)


def latest_version(kv: KeyValue, value: bytes) -> int:
  return note(kv.url, LATEST, value, "version", int)


def read_manifest(kv: KeyValue, version: int) -> Manifest | None:
  key = f"{folder(version)}manifest"
  value = kv.get(key).value
  if value is None:
    return None
  arrays = note(kv.url, key, value, "arrays", dict)
  info = note(kv.url, key, value, "info", dict)
  created = note(kv.url, key, value, "created", float)
  if not all(map(_is_described, arrays.values())):
    raise StoreError(f"store {kv.url}: {key!r} does not describe its arrays")
  return Manifest(version, info, arrays, created)


def read(kv: KeyValue, manifest: Manifest) -> dict[str, np.ndarray]:
  """The arrays of a version, read-only where they came in one chunk.

  One that several processes have published comes in blocks (`blocks.py`).

  Raises:
    ParamsGoneError: deleted meanwhile; take the latest again.
    StoreError: the bytes are not those that were written, or not those that the
      manifest describes.
  """
  prefix = folder(manifest.version)

  def get(name: str, said: Mapping[str, Any]) -> np.ndarray:
    if "blocks" in said:
      array = blocks.read(kv, prefix, said)
    else:
      keys = [f"{prefix}{name}.{index:04d}" for index in range(len(said["checksums"]))]
      array = _array(kv, said, dict(zip(keys, kv.get_many(keys), strict=True)))
    if array is None:
      raise ParamsGoneError(
        f"store {kv.url}: params of version {manifest.version} were deleted"
      )
    return array

  try:
    with ThreadPoolExecutor(_THREADS) as threads:
      arrays = threads.map(get, manifest.arrays, manifest.arrays.values())
      return dict(zip(manifest.arrays, arrays, strict=True))
  except (MemoryError, TypeError, ValueError) as error:
    raise StoreError(
      f"store {kv.url}: {prefix}manifest does not fit its arrays: {error}"
    ) from error


def _described(array: np.ndarray) -> tuple[dict[str, Any], list[memoryview]]:
  """What a manifest says of an array, and the pieces that it is written in."""
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
  pieces = [data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES)]
  said = {
    "dtype": array.dtype.name,
    "shape": list(array.shape),
    "checksums": [zlib.crc32(piece) for piece in pieces],
  }
  return said, pieces


def _is_described(said: Any) -> bool:
  """Whether a manifest's entry is one of an array, whole or in blocks."""
  if not isinstance(said, dict) or not isinstance(said.get("dtype"), str):
    return False
  if said.keys() == {"dtype", "shape", "checksums"}:
    return _are_counts(said["shape"]) and _are_counts(said["checksums"])
  if said.keys() != {"dtype", "shape", "blocks"} or not _are_counts(said["shape"]):
    return False
  return isinstance(said["blocks"], list) and all(map(_is_block, said["blocks"]))


def _is_block(said: Any) -> bool:
  if not isinstance(said, dict) or said.keys() != {"key", "start", "shape", "checksum"}:
    return False
  placed = _are_counts(said["start"]) and _are_counts(said["shape"])
  return placed and isinstance(said["key"], str) and type(said["checksum"]) is int


def _are_counts(x: Any) -> bool:
  return isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)


def _digest(described: Mapping[str, Mapping[str, Any]]) -> str:
  text = json.dumps(described, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _array(
  kv: KeyValue, said: Mapping[str, Any], reads: Mapping[str, Read]
) -> np.ndarray | None:
  for (key, found), checksum in zip(reads.items(), said["checksums"], strict=True):
    if found.value is None:
      return None
    if zlib.crc32(found.value) != checksum:
      raise StoreError(f"store {kv.url}: {key} is damaged")
  chunks = [found.value for found in reads.values()]
  data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
  return np.frombuffer(data, blocks.dtype_of(said["dtype"])).reshape(said["shape"])


def versions(kv: KeyValue) -> dict[int, bool]:
  """Versions with any key in the store, oldest first, and whether each is complete."""
  found: dict[int, bool] = {}
  for key in kv.keys("params/"):
    # What else lies there is not the library's.
    if named := _VERSION.fullmatch(key):
      version = int(named[1])
      found[version] = found.get(version, False) or named[2] == "manifest"
  return dict(sorted(found.items()))


def delete(kv: KeyValue, version: int) -> None:
  """Deletes a version, its manifest first, so that no reader starts on a torn one."""
  kv.delete(f"{folder(version)}manifest")
  kv.delete_span(folder(version))
