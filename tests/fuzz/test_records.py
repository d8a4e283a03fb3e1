"""Records that somebody has tampered with: refused in words, and before they cost."""

import json
import random
import tracemalloc
from collections import Counter

import pytest
from examine import (
  LIMITS,
  VERSION,
  examine,
  examine_note,
  framed,
  good_record,
  split,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tis_jax.rollouts import BadRolloutError, Header, Sampling, decode
from tis_jax.rollouts.record import ARRAYS
from tis_jax.store.notes import check_writer
from tis_jax.store.store import rollout_key

_GOOD = good_record()
_TEXT, _ARRAYS = split(_GOOD)
_HEADER = json.loads(_TEXT)
_VALUES = (
  *(None, True, 0, -1, 1, 5, 2**31, 2**60, 2**62, 2**63, 2**70, -(2**63), 1.5, 1e308),
  *(float("nan"), float("inf"), "", "a", "../x", "\ud800", [], {}, [0], [True, 3]),
  *([1, 2**62], [2**62] * 4, [0, 2**62], [0, 2**62, 5], [-1], {"a": 1}, [[[[]]]]),
)


def mutated(rng: random.Random) -> bytes:
  """A record with a few fields, sizes and bytes that it should not have."""
  header, arrays = json.loads(json.dumps(_HEADER)), bytearray(_ARRAYS)
  for _ in range(rng.randrange(4)):
    places = [header, header.get("header"), header.get("arrays")]
    if isinstance(places[1], dict):
      places.append(places[1].get("sampling"))
    place = rng.choice([x for x in places if isinstance(x, dict)])
    name = rng.choice([*place, *ARRAYS, "unknown"])
    sizes = place.get(name)
    if rng.random() < 0.25:
      place.pop(name, None)
    elif isinstance(sizes, list) and sizes and rng.random() < 0.6:
      sizes[rng.randrange(len(sizes))] = rng.choice(_VALUES)
    else:
      # A copy: one object in two places, or in itself, is no JSON.
      place[name] = json.loads(json.dumps(rng.choice(_VALUES)))
  for _ in range(rng.choice((0, 0, 1, 4, 30))):
    arrays[rng.randrange(len(arrays))] = rng.randrange(256)
  data = framed(json.dumps(header).encode(), bytes(arrays))
  cut = rng.random()
  if cut < 0.05:
    return data[: rng.randrange(len(data))]
  if cut < 0.1:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
  return data


def outcomes(count, seed):
  rng = random.Random(seed)
  return Counter(examine(mutated(rng)) for _ in range(count))


def test_two_thousand_mutations_are_refused_in_words_or_harmless():
  found = outcomes(2000, seed=0)
  # Of each kind there are some, or the mutations reach nothing.
  kinds = {"accepted", "corrupt", "shape", "values", "truncated", "schema"}
  assert found.keys() >= kinds, found


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_thousand_mutations(seed):
  found = outcomes(10_000, seed + 1)
  assert found.total() == 10_000
  print(dict(found))


_sizes = st.lists(st.integers(0, 2**63) | st.sampled_from([0, 1, 4, 5]), max_size=5)


@given(st.dictionaries(st.sampled_from([*ARRAYS]), _sizes, max_size=8), st.data())
@settings(max_examples=200, deadline=None)
def test_sizes_are_held_against_the_bytes_before_anything_is_allocated(sizes, data):
  header = _HEADER | {"arrays": _HEADER["arrays"] | sizes}
  record = framed(json.dumps(header).encode(), _ARRAYS[: data.draw(st.integers(0, 99))])
  tracemalloc.start()
  try:
    examine(record)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 100_000


@given(st.text() | st.sampled_from(["..", "a/../b", ".", "a\0", "a\n", "٣", "a" * 999]))
def test_no_name_of_a_writer_leaves_its_folder(name):
  try:
    key = rollout_key(name, 3)
  except ValueError:
    return
  assert key == f"rollouts/{name}/0000000003" and key.count("/") == 2
  assert name.isascii() and not name.startswith(".") and check_writer(name) == name


_json = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
  st.dictionaries(
    st.sampled_from(["time", "version", "seq", "state", "health", "cursor", "x"]), _json
  ).map(lambda x: json.dumps(x).encode())
  | st.binary()
  | st.integers(1, 200_000).map(lambda depth: b"[" * depth)
)
@settings(max_examples=50, deadline=None)
def test_notes_are_read_or_refused(data):
  examine_note(data)


@given(st.integers(1, 100_000))
@settings(max_examples=10, deadline=None)
def test_deep_json_is_refused(depth):
  for header in (b"[" * depth, b'{"schema": 2, "header": ' + b'{"a":' * depth):
    with pytest.raises(BadRolloutError):
      decode(framed(header, b""))


def test_what_is_accepted_is_as_it_was_sent():
  assert examine(_GOOD) == "accepted"
  assert Header(VERSION, Sampling(dtype="bfloat16")) == decode(_GOOD).header
  assert LIMITS.shape == decode(_GOOD).shape
