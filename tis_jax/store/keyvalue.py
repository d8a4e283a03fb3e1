"""A key-value store whose failures name its URL, and whose conditions are checked."""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorstore as ts

from tis_jax.store.errors import (
  StoreError,
  StoreFullError,
  StoreReadOnlyError,
  StoreUnreachableError,
)
from tis_jax.store.location import (
  credentials_hint,
  normalized,
  open_keyvalue,
  remove_empty_folders,
)
from tis_jax.store.memory_files import Buffer, MemoryFiles

_READ_ONLY = (
  "PERMISSION_DENIED",
  "Permission denied",
  "Read-only",
  "not support writing",
  "AccessDenied",
)
_FULL = ("No space left", "Disk quota exceeded", "EntityTooLarge")
_REFUSED_CREDENTIALS = (
  "InvalidAccessKeyId",
  "SignatureDoesNotMatch",
  "ExpiredToken",
  "InvalidToken",
  "UNAUTHENTICATED",
)
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist")
_REFUSALS = 3
_LOST_RACES = 50


class Read(NamedTuple):
  """The outcome of a read.

  Attributes:
    value: the bytes, or a mapping of them; None where the key is missing, or unchanged.
    generation: names this state of the key, for `unless` and `only_if`; empty where
      several were read at once.
    unchanged: whether the state is still the one named by `unless`.
  """

  value: Any
  generation: bytes
  unchanged: bool = False


class KeyValue:
  """Bytes by key under one URL.

  Every method raises `StoreUnreachableError` when no answer comes within `timeout`
  seconds, `StoreReadOnlyError` when writing is refused, `StoreFullError` when there is
  no room, and `StoreError` otherwise.

  >>> kv = KeyValue("memory://doctest-keyvalue")
  >>> kv.create("a/1", b"x"), kv.create("a/1", b"y")
  (True, False)
  >>> kv.get("a/1").value, kv.keys("a/")
  (b'x', ['a/1'])
  """

  def __init__(self, url: str, timeout: float = 60.0):
    self.url = normalized(url)
    self.timeout = timeout
    self._kv = open_keyvalue(self.url, timeout)
    self._files = MemoryFiles.at(self.url)

  def get(self, key: str, unless: bytes | None = None) -> Read:
    """The value of `key`; cheap where its generation is still `unless`."""
    return self._read(key, self._start("read", key, if_not_equal=unless))

  def get_many(self, keys: Iterable[str]) -> list[Read]:
    """The values of several keys, read at once; large ones where they lie, if they can
    be. Without generations.

    >>> kv = KeyValue("memory://doctest-get-many")
    >>> kv.put_many({"a": memoryview(b"xyz")[1:]})
    >>> [read.value for read in kv.get_many(["a", "b"])]
    [b'yz', None]
    """
    found, started = [], []
    for key in keys:
      value = None
      if self._files is not None and self._files.takes(key):
        value = self._call("read", key, self._files.read)
      else:
        started.append((len(found), key, self._start("read", key)))
      found.append(Read(value, b""))
    for place, key, future in started:
      found[place] = self._read(key, future)._replace(generation=b"")
    return found

  def exceed_many(self, keys: Iterable[str], size: int) -> list[bool | None]:
    """Whether the values have more than `size` bytes, None for those that are missing.

    Reads a byte of each at most.

    >>> kv = KeyValue("memory://doctest-exceed")
    >>> kv.put_many({"a": b"12345", "b": b"123"})
    >>> kv.exceed_many(["a", "b", "c"], 4)
    [True, False, None]
    """
    byte = slice(size, size + 1)
    started = [(key, self._start("read", key, byte_range=byte)) for key in keys]
    return [self._reaches(key, future) for key, future in started]

  def put(self, key: str, value: bytes) -> None:
    """Writes `key`, whatever was there."""
    self._wait("write", key, self._start("write", key, value))

  def put_many(self, values: Mapping[str, Buffer]) -> None:
    """Writes several keys at once; they do not appear together."""
    started = []
    for key, value in values.items():
      if self._files is not None and self._files.takes(key):
        self._call("write", key, self._files.write, value)
      else:
        started.append((key, self._start("write", key, bytes(value))))
    for key, future in started:
      self._wait("write", key, future)

  def swap(self, key: str, value: bytes, only_if: bytes) -> bool:
    """Writes `key` if its generation is still `only_if`; returns whether it was.

    False is a lost race: the key has another generation now.

    Raises:
      StoreError: the write was refused again and again, and nobody else had made one.
    """
    if not only_if:
      # TensorStore takes an empty condition for none, and would overwrite.
      raise StoreError(f"store {self.url}: no generation to compare {key!r} with")
    for _ in range(_REFUSALS):
      write = self._start("write", key, value, if_equal=only_if)
      # A failed condition is no error: the store answers with an empty generation. So
      # it does when it cannot write at all, for want of a bucket for one.
      if self._wait("write", key, write).generation:
        return True
      if self.get(key).generation != only_if:
        return False
    self.check_bucket()
    raise StoreError(
      f"store {self.url}: conditional writes of {key!r} are refused, though nobody "
      "else has written it; does this store support them?"
    )

  def update(self, key: str, change: Callable[[Read], bytes]) -> bytes:
    """Writes `change(what is there)` to `key`, again while others win; returns it.

    Raises:
      StoreError: others won every time.
    """
    for attempt in range(_LOST_RACES):
      found = self.get(key)
      value = change(found)
      if self.swap(key, value, found.generation):
        return value
      time.sleep(random.uniform(0.0, min(0.001 * 2**attempt, 0.05)))
    raise StoreError(
      f"store {self.url}: {key!r} was changed by others at {_LOST_RACES} attempts to "
      "write it; how many learners or samplers of one name write to this store?"
    )

  def check_bucket(self) -> None:
    """Raises if the bucket is missing: to reads it looks like an empty one."""
    try:
      self._wait("list", "", self._start("list", "", ts.KvStore.KeyRange("a", "b")))
    except StoreUnreachableError:
      raise
    except StoreError:
      pass  # It cannot be listed, which says nothing.

  def create(self, key: str, *parts: Buffer) -> bool:
    """Writes `key` if it is missing; returns whether it was.

    Args:
      key: of the value.
      *parts: of it, in order.
    """
    if self._files is not None and self._files.takes(key):
      return self._call("write", key, self._files.create, *parts)
    value = b"".join(parts)
    found = self.get(key)
    return found.value is None and self.swap(key, value, found.generation)

  def keys(self, prefix: str, start: str = "") -> list[str]:
    """Keys below `prefix` (which ends in a slash), from `prefix + start` on, sorted."""
    span = ts.KvStore.KeyRange(prefix + start, _after(prefix))
    return sorted(
      key.decode()
      for key in self._wait("list", prefix, self._start("list", prefix, span))
    )

  def delete(self, key: str) -> None:
    """Deletes `key`; a missing one is no error."""
    self._wait("delete", key, self._start("write", key, None))

  def delete_span(self, prefix: str, end: str | None = None) -> None:
    """Deletes the keys below `prefix`, all or those before `prefix + end`.

    On a file system the folders of a prefix that is deleted whole go too.
    """
    stop = _after(prefix) if end is None else prefix + end
    span = ts.KvStore.KeyRange(prefix, stop)
    self._wait("delete", prefix, self._start("delete_range", prefix, span))
    if end is None:
      remove_empty_folders(self.url, prefix)

  def _start(self, method: str, key: str, *args, **kwargs):
    first = () if method in ("list", "delete_range") else (key,)
    try:
      return getattr(self._kv, method)(*first, *args, **kwargs)
    except Exception as error:
      raise self._explained(method, key, error) from error

  def _call(self, action: str, key: str, method: Callable, *args):
    try:
      return method(key, *args)
    except OSError as error:
      raise self._explained(action, key, error) from error

  def _wait(self, action: str, key: str, future):
    try:
      return future.result(timeout=self.timeout)
    except Exception as error:
      raise self._explained(action, key, error) from error

  def _read(self, key: str, future) -> Read:
    result = self._wait("read", key, future)
    value = result.value if result.state == "value" else None
    return Read(value, result.stamp.generation, result.state == "unspecified")

  def _reaches(self, key: str, future) -> bool | None:
    try:
      return True if self._read(key, future).value is not None else None
    except StoreError as error:
      if "OUT_OF_RANGE" in str(error):
        return False
      raise

  def _explained(self, action: str, key: str, error: Exception) -> StoreError:
    place = f"store {self.url}: {action} of {key!r}"
    if isinstance(error, TimeoutError):
      hint = credentials_hint(self.url)
      looked = f"; it looks for credentials in {hint}" * bool(hint)
      return StoreUnreachableError(
        f"{place} got no answer in {self.timeout:g} s{looked}"
      )
    text = str(error)
    if any(sign in text for sign in _REFUSED_CREDENTIALS) or (
      action == "read" and "PERMISSION_DENIED" in text
    ):
      hint = credentials_hint(self.url) or "the file's owner and mode"
      return StoreUnreachableError(
        f"{place} was refused to these credentials: look at {hint}. The store says: "
        f"{text}"
      )
    if any(sign in text for sign in _NO_BUCKET):
      return StoreUnreachableError(
        f"store {self.url}: its bucket does not exist; create it, or mend the URL"
      )
    if action != "read" and any(sign in text for sign in _READ_ONLY):
      return StoreReadOnlyError(f"{place} refused, it is read-only: {text}")
    if any(sign in text for sign in _FULL):
      return StoreFullError(
        f"{place} failed, there is no room left: make some, or let fewer params stay "
        f"there (store.keep). The system says: {text}"
      )
    if action != "read" and "No such file" in text:
      # A folder that was there when the write began.
      return StoreUnreachableError(f"{place} failed, it is no longer there: {text}")
    if "UNAVAILABLE" in text:
      return StoreUnreachableError(f"{place} failed: {text}")
    return StoreError(f"{place} failed: {text}")


def _after(prefix: str) -> str:
  """The first key that sorts after everything below `prefix`."""
  return prefix[:-1] + chr(ord(prefix[-1]) + 1)
