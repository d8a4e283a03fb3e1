"""The small JSON notes of a store, read with care: anyone may have written them."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from tis_jax.store.errors import StoreError

_SEQ = re.compile(r"\d{10}", re.ASCII)
_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
# A name longer than this, with its folder, is more than file systems take.
_LONGEST_NAME = 200
# Fields of a heartbeat that somebody reads; others may be there.
_BEAT: Mapping[str, tuple[type, ...]] = {
  "seq": (int,),
  "version": (int, type(None)),
  "state": (str,),
  "pid": (int,),
  "incarnation": (int,),
}
_COUNTS = ("unrewarded", "health")


def check_writer(name: str) -> str:
  """`name`, if it can be part of a key.

  Raises:
    ValueError: it cannot.
  """
  if not is_writer(name):
    raise ValueError(
      f"{name!r:.60} cannot name a writer: up to {_LONGEST_NAME} letters, digits, '.', "
      "'_', '-', and the first is a letter or a digit"
    )
  return name


def is_writer(name: str) -> bool:
  """Whether `name` can be part of a key; it then has no slash and no `..` to climb by.

  >>> [is_writer(name) for name in ("local0", "a.b", "../a", ".hid", "a b", "")]
  [True, True, False, False, False, False]
  """
  return len(name) <= _LONGEST_NAME and _WRITER.fullmatch(name) is not None


def seq_of(name: str) -> int | None:
  """The sequence number that the last part of a key says; None if it says none.

  >>> seq_of("0000000012"), seq_of("12"), seq_of("0000000012.json")
  (12, None, None)
  """
  return int(name) if _SEQ.fullmatch(name) else None


def note(url: str, key: str, value: bytes, field: str, kind: type) -> Any:
  """`field` of the JSON note in `key`.

  Raises:
    StoreError: it is no such note.

  >>> note("memory://x/", "stop", b'{"reason": "the end"}', "reason", str)
  'the end'
  >>> note("memory://x/", "claims/a", b"{}", "incarnation", int)
  Traceback (most recent call last):
  tis_jax.store.errors.StoreError: store memory://x/: 'claims/a' is not what tis_jax
  writes there (no incarnation); delete it if it is yours
  """
  found = _object(value).get(field)
  if type(found) is not kind:
    raise StoreError(
      f"store {url}: {key!r} is not what tis_jax writes there (no {field}); delete it "
      "if it is yours"
    )
  return found


def cursor(value: bytes | None) -> tuple[int | None, dict[str, int]]:
  """What the learner has released: under which version of the params, and how far.

  >>> cursor(b'{"version": 3, "cursor": {"a": 7}}'), cursor(b""), cursor(None)
  ((3, {'a': 7}), (None, {}), (None, {}))
  """
  found = _object(value)
  version, seqs = found.get("version"), found.get("cursor")
  sane = type(version) is int and isinstance(seqs, dict)
  if not sane or any(type(seq) is not int for seq in seqs.values()):
    return None, {}
  return version, seqs


def heartbeat(value: bytes) -> dict[str, Any] | None:
  """A heartbeat, if it is one.

  >>> heartbeat(b'{"time": 1.5, "state": "ended"}')
  {'time': 1.5, 'state': 'ended'}
  >>> heartbeat(b""), heartbeat(b'{"time": 1.5, "version": []}')
  (None, None)
  """
  beat = _object(value)
  if not _is_number(beat.get("time")) or not math.isfinite(beat["time"]):
    return None
  for name, kinds in _BEAT.items():
    if name in beat and type(beat[name]) not in kinds:
      return None
  for name in _COUNTS:
    counts = beat.get(name) or {}
    if not isinstance(counts, dict) or not all(map(_is_number, counts.values())):
      return None
  return beat


def _object(value: bytes | None) -> dict[str, Any]:
  try:
    found = json.loads(value or b"")
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _is_number(x: Any) -> bool:
  """Whether it becomes a float; no bool is a number here."""
  return isinstance(x, float) or (type(x) is int and abs(x) < 2**62)
