"""Params that several processes publish together, each the blocks that it holds.

```
params/v0000000007/<parameter>.p001.0000   raw little-endian bytes of a block
params/v0000000007/part.001                JSON: what process 1 has written
params/v0000000007/manifest                by process 0, when all have written
```

No process sees another's blocks: process 0 reads what they say of them.
"""

import json
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tis_jax.store.errors import StoreError, StoreUnreachableError
from tis_jax.store.keyvalue import KeyValue

_LOOK_SECONDS = 0.02


class Block(NamedTuple):
  """A part of an array.

  Attributes:
    start: where it begins in the array, along each axis.
    values: what it holds.
  """

  start: tuple[int, ...]
  values: np.ndarray


class Blocks(NamedTuple):
  """The blocks of an array that one process publishes; none, where others hold all.

  Attributes:
    shape: of the whole array.
    dtype: its name.
    held: the blocks.
  """

  shape: tuple[int, ...]
  dtype: str
  held: tuple[Block, ...]


def write(kv: KeyValue, folder: str, arrays: Mapping[str, Blocks], part: int) -> None:
  """Writes the blocks of one process, and then what it has written."""
  said: dict[str, Any] = {}
  for name, blocks in arrays.items():
    said[name] = {"dtype": blocks.dtype, "shape": list(blocks.shape), "blocks": []}
    for index, block in enumerate(blocks.held):
      data = np.ascontiguousarray(block.values).reshape(-1).view(np.uint8).data
      key = f"{name}.p{part:03d}.{index:04d}"
      kv.put_many({folder + key: data})
      said[name]["blocks"].append(
        {
          "key": key,
          "start": list(block.start),
          "shape": list(block.values.shape),
          "checksum": zlib.crc32(data),
        }
      )
  kv.put(f"{folder}part.{part:03d}", json.dumps(said).encode())


def gather(kv: KeyValue, folder: str, parts: int, timeout: float) -> dict[str, Any]:
  """What all processes have written, as a manifest says it; waits for them.

  Raises:
    StoreUnreachableError: one has written nothing in `timeout` seconds.
  """
  deadline = time.monotonic() + timeout
  arrays: dict[str, Any] = {}
  for part in range(parts):
    key = f"{folder}part.{part:03d}"
    while (value := kv.get(key).value) is None:
      if time.monotonic() > deadline:
        raise StoreUnreachableError(
          f"store {kv.url}: process {part} of {parts} has not published its part of "
          f"{folder} in {timeout:g} s"
        )
      time.sleep(_LOOK_SECONDS)
    for name, said in json.loads(value).items():
      array = arrays.setdefault(name, {**said, "blocks": []})
      array["blocks"] += said["blocks"]
  return arrays


def read(kv: KeyValue, folder: str, said: Mapping[str, Any]) -> np.ndarray | None:
  """An array put together of its blocks; None where one of them is gone.

  Raises:
    StoreError: the bytes are not those that were written, or not those of the array.
  """
  shape, dtype = tuple(said["shape"]), dtype_of(said["dtype"])
  blocks = said["blocks"]
  reads = kv.get_many(folder + block["key"] for block in blocks)
  array, filled = np.empty(shape, dtype), 0
  for block, found in zip(blocks, reads, strict=True):
    if found.value is None:
      return None
    if zlib.crc32(found.value) != block["checksum"]:
      raise StoreError(f"store {kv.url}: {folder}{block['key']} is damaged")
    span = zip(block["start"], block["shape"], strict=True)
    where = array[tuple(slice(start, start + size) for start, size in span)]
    if where.shape != tuple(block["shape"]) or where.nbytes != len(found.value):
      raise StoreError(
        f"store {kv.url}: {folder}{block['key']} is no block of an array {shape}"
      )
    where[...] = np.frombuffer(found.value, dtype).reshape(where.shape)
    filled += where.size
  if filled != array.size:
    raise StoreError(
      f"store {kv.url}: {filled} of {array.size} values of an array are in {folder}; "
      "has every process published its blocks, and each block one of them?"
    )
  return array


def dtype_of(name: str) -> np.dtype:
  """NumPy's dtype of a name; bfloat16 and the like are ml_dtypes'."""
  return np.dtype(getattr(ml_dtypes, name, name))
