"""Params that several processes publish together, and values in shared memory."""

import json
import secrets
import shutil
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tis_jax.store import (
  Block,
  Blocks,
  ParamsGoneError,
  Store,
  StoreError,
  StoreUnreachableError,
)
from tis_jax.store.keyvalue import KeyValue
from tis_jax.store.memory_files import MemoryFiles

WHOLE = np.arange(24).reshape(4, 6).astype(ml_dtypes.bfloat16)
BIAS = np.arange(3, dtype=np.float32)


def parts():
  """What each of two processes holds: halves of a matrix, and a vector that one has."""
  left, right = (Block((0, x), WHOLE[:, x : x + 3]) for x in (0, 3))
  matrix, vector = (4, 6), (3,)
  return (
    {
      "w": Blocks(matrix, "bfloat16", (left,)),
      "b": Blocks(vector, "float32", (Block((0,), BIAS),)),
    },
    {"w": Blocks(matrix, "bfloat16", (right,)), "b": Blocks(vector, "float32", ())},
  )


@pytest.fixture(params=["memory", "shared"])
def store(request):
  if request.param == "memory":
    yield Store.open(f"memory://{secrets.token_hex(4)}", run="r", create=True)
    return
  folder = Path("/dev/shm") / f"tis_jax_test_{secrets.token_hex(4)}"
  if MemoryFiles.at(folder.as_uri()) is None:
    pytest.skip("no shared memory here")
  yield Store.open(folder.as_uri(), run="r", create=True, timeout=5.0)
  shutil.rmtree(folder, ignore_errors=True)


def published(store, version=0):
  first, second = parts()
  other = Store.open(store.url, "r")
  thread = threading.Thread(
    target=lambda: other.publish_blocks(version, second, {}, part=1, parts=2)
  )
  thread.start()
  manifest = store.publish_blocks(version, first, {"cursor": {}}, part=0, parts=2)
  thread.join()
  return manifest


def test_what_two_processes_publish_is_read_as_whole_arrays(store):
  assert published(store) == store.latest()
  found = store.read_params(store.latest())
  assert list(found) == ["w", "b"]
  np.testing.assert_array_equal(found["w"], WHOLE)
  np.testing.assert_array_equal(found["b"], BIAS)
  assert store.latest().digest == ""  # nobody has seen them whole
  # Beside versions that one process published.
  store.publish(1, {"w": WHOLE}, {"cursor": {}})
  np.testing.assert_array_equal(store.read_params(store.latest())["w"], WHOLE)
  assert store.delete_params(keep=1) == [0]
  assert not store.kv.keys("params/v0000000000/")


def test_blocks_that_are_damaged_missing_or_gone_are_said(store):
  manifest = published(store)
  folder = "params/v0000000000/"
  (block,) = manifest.arrays["b"]["blocks"]
  missing = json.loads(json.dumps(manifest.arrays))
  missing["w"]["blocks"].pop()
  with pytest.raises(StoreError, match="12 of 24 values"):
    store.read_params(manifest.__class__(0, {}, missing, 0.0))
  beyond = json.loads(json.dumps(manifest.arrays))
  beyond["w"]["blocks"][0]["start"] = [2, 0]
  with pytest.raises(StoreError, match="is no block of an array"):
    store.read_params(manifest.__class__(0, {}, beyond, 0.0))
  store.kv.put(folder + block["key"], bytes(12))
  with pytest.raises(StoreError, match="damaged"):
    store.read_params(manifest)
  store.kv.delete(folder + block["key"])
  with pytest.raises(ParamsGoneError):
    store.read_params(manifest)


def test_a_process_that_publishes_nothing_is_named(store):
  store.kv.timeout = 0.1
  with pytest.raises(StoreUnreachableError, match="process 1 of 2 has not published"):
    store.publish_blocks(0, parts()[0], {"cursor": {}}, part=0, parts=2)
  assert store.latest() is None


def test_values_in_shared_memory_are_those_of_the_general_store():
  folder = Path("/dev/shm") / f"tis_jax_test_{secrets.token_hex(4)}"
  if MemoryFiles.at(folder.as_uri()) is None:
    pytest.skip("no shared memory here")
  try:
    kv = KeyValue(folder.as_uri())
    large = np.random.default_rng(0).bytes(3 << 20)
    kv.put_many({"a/large": memoryview(large), "a/small": b"x"})
    kv.put("a/other", b"y")
    assert kv.keys("a/") == ["a/large", "a/other", "a/small"]
    assert kv.get("a/large").value == large
    views = [read.value for read in kv.get_many(["a/large", "a/other", "a/none"])]
    assert [views[0][:], views[1:]] == [large, [b"y", None]]
    assert (kv.create("b/1", large), kv.create("b/1", b"z")) == (True, False)
    kv.delete("a/large")
    assert views[0][:] == large  # a mapping outlives its key
    for key in ("../out", "a//b", "a/b.__lock"):
      with pytest.raises(StoreError):
        kv.put_many({key: b"x"})
    assert not (folder.parent / "out").exists()
  finally:
    shutil.rmtree(folder, ignore_errors=True)
