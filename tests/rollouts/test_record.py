"""The bytes of a record: what goes in comes out, and damage has a name."""

import contextlib
import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tis_jax.rollouts import (
  ABORTED,
  LENGTH,
  STOP,
  Header,
  Limits,
  Sampling,
  decode,
  encode,
  tight_sets,
  validate,
)
from tis_jax.rollouts.errors import (
  AmbiguousLawError,
  BadRolloutError,
  CorruptRolloutError,
  RolloutSchemaError,
  RolloutShapeError,
  RolloutValueError,
  TruncatedRolloutError,
)


@pytest.mark.parametrize("kept", [True, False])
def test_round_trip_is_exact(make_rollout, kept):
  kept_mass = np.full((4, 5), 0.75, np.float32) if kept else None
  kept_tokens = np.arange(60, dtype=np.int32).reshape(4, 5, 3) if kept else None
  greedy_rewards = np.arange(4, dtype=np.float32) if kept else None
  named_rewards = np.arange(8, dtype=np.float32).reshape(4, 2) if kept else None
  rollout = make_rollout(
    kept_mass=kept_mass,
    kept_tokens=kept_tokens,
    greedy_rewards=greedy_rewards,
    named_rewards=named_rewards,
    top_tokens=kept_tokens,
    top_logp=None if kept_tokens is None else -kept_tokens.astype(np.float32),
  )
  again = decode(encode(rollout))
  assert again.header == rollout.header
  assert again.arrays().keys() == rollout.arrays().keys()
  assert ("kept_mass" in again.arrays()) == kept
  for name, value in rollout.arrays().items():
    np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
    assert getattr(again, name).dtype == value.dtype
  assert again.shape == (4, 3, 5)


def test_arrays_are_aligned_and_plain(make_rollout):
  data = encode(make_rollout(rows=3, prompt=1, length=3))
  assert b"pickle" not in data
  length = struct.unpack_from("<I", data, 12)[0]
  header = json.loads(data[16 : 16 + length])
  start = 16 + length + (-(16 + length) % 8)
  prompts = np.frombuffer(data, "<i4", 3, start)
  np.testing.assert_array_equal(prompts, decode(data).prompts.ravel())
  assert header["arrays"]["prompts"] == [3, 1]
  assert len(data) % 8 == 0


@settings(max_examples=60, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_called_truncated(make_rollout, fraction):
  data = encode(make_rollout())
  with pytest.raises(TruncatedRolloutError):
    decode(data[: int(fraction * len(data))])


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_is_caught_under_some_name(make_rollout, place, flip):
  data = bytearray(encode(make_rollout()))
  data[int(place * len(data))] ^= flip
  with pytest.raises(BadRolloutError):
    decode(bytes(data))


def test_trailing_bytes_and_foreign_bytes_are_corrupt(make_rollout):
  with pytest.raises(CorruptRolloutError):
    decode(encode(make_rollout()) + b"\0")
  with pytest.raises(CorruptRolloutError):
    decode(b"\x80\x04pickled" * 10)


def _reheadered(data: bytes, change) -> bytes:
  """The record with its header changed and the checksum made right again."""
  length = struct.unpack_from("<I", data, 12)[0]
  header = json.loads(data[16 : 16 + length])
  change(header)
  text = json.dumps(header).encode()
  arrays = data[16 + length + (-(16 + length) % 8) :]
  text += b" " * (-(16 + len(text)) % 8)
  body = struct.pack("<I", len(text)) + text + arrays
  return data[:8] + struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (lambda h: h.update(schema=99), RolloutSchemaError),
    (lambda h: h.update(arrays=None), CorruptRolloutError),
    (lambda h: h["arrays"].update(evil=[1]), CorruptRolloutError),
    (lambda h: h["arrays"].update(tokens=[-4, 5]), CorruptRolloutError),
    (lambda h: h["arrays"].update(tokens=[5, 4]), RolloutShapeError),
    (lambda h: h["arrays"].update(tokens=[20]), RolloutShapeError),
    (lambda h: h["arrays"].update(tokens=[2**40, 2**40]), TruncatedRolloutError),
    (lambda h: h["arrays"].update(tokens=[0, 2**70]), CorruptRolloutError),
    (lambda h: h["arrays"].update(tokens=[True, 20]), CorruptRolloutError),
    (lambda h: h["header"].update(version="3"), CorruptRolloutError),
    (lambda h: h["header"].update(version=True), CorruptRolloutError),
    (lambda h: h["header"].update(version=10**30), CorruptRolloutError),
    (lambda h: h["header"].update(created=None), CorruptRolloutError),
    (lambda h: h["header"].update(writer=["a"]), CorruptRolloutError),
    (lambda h: h["header"].update(sampling="raw"), CorruptRolloutError),
    (lambda h: h["header"]["sampling"].update(top_k=0.5), CorruptRolloutError),
    (lambda h: h["header"]["sampling"].pop("logprobs"), AmbiguousLawError),
    (lambda h: h["header"]["sampling"].update(unknown=1), CorruptRolloutError),
    (lambda h: h["header"].pop("version"), CorruptRolloutError),
    (lambda h: h.pop("header"), CorruptRolloutError),
  ],
)
def test_a_wrong_header_has_a_name(make_rollout, change, error):
  with pytest.raises(error):
    decode(_reheadered(encode(make_rollout()), change))


def test_the_writer_refuses_what_does_not_fit(make_rollout):
  good = make_rollout()
  for name, value in {
    "tokens": good.tokens.astype(np.int64),
    "sampler_logp": good.sampler_logp[:, :-1],
    "rewards": good.rewards[:, None],
    "mask": good.mask.astype(np.float32),
    "group_ids": None,
    "kept_tokens": np.zeros((4, 3, 2), np.int32),
  }.items():
    with pytest.raises(RolloutShapeError, match=name):
      encode(dataclasses.replace(good, **{name: value}))
  with pytest.raises(RolloutShapeError, match="no tokens"):
    encode(make_rollout(rows=0))


def test_a_record_of_version_1_is_read():
  """Bytes that the library wrote before there was a second version."""
  data = (Path(__file__).parent / "version_1.record").read_bytes()
  record = decode(data)
  assert record.header == Header(
    5, Sampling(temperature=0.7, dtype="bfloat16"), "run-1", "local0", 12, 1.5
  )
  assert record.tokens.tolist() == [[3, 1, 0], [1, 0, 0]]
  assert record.sampler_logp[0].tolist() == [-0.5, -0.25, 0.0]
  assert record.present is None and record.kept_ids is None
  validate(record, Limits(run="run-1", vocab_size=8, group_size=2), learner_version=5)


def test_everything_that_version_2_has_room_for_comes_back(make_rollout):
  good = make_rollout()
  rows, prompt, length = good.shape
  places = zip(good.tokens.ravel(), good.mask.ravel(), strict=True)
  offsets, ids = tight_sets([[token] if held else [] for token, held in places])
  second = np.arange(length) == 1
  record = dataclasses.replace(
    good,
    header=Header(0, Sampling(top_p=0.5, logprobs="processed"), params_digest="ab12"),
    present=good.mask & ~second,
    sampler_logp=np.where(second, np.float32(np.nan), good.sampler_logp),
    turn_rewards=np.ones((rows, 1), np.float32),
    finish_reasons=np.int8([STOP, LENGTH, ABORTED, STOP]),
    kept_offsets=offsets,
    kept_ids=ids,
    routed_experts=np.full((rows, prompt + length, 2, 3), 7, np.int16),
  )
  validate(record, Limits(experts=8, routing=(2, 3)))
  with pytest.raises(RolloutValueError, match=r"routed_experts has one outside"):
    validate(record, Limits(experts=7))
  with pytest.raises(RolloutShapeError, match=r"routed_experts have \(2, 3\) layers"):
    validate(record, Limits(routing=(2, 2)))
  again = decode(encode(record))
  assert again.header == record.header
  assert again.arrays().keys() == record.arrays().keys()
  for name, value in record.arrays().items():
    np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_a_mask_is_of_true_and_false(make_rollout):
  data = bytearray(encode(make_rollout()))
  place = bytes(data).index(make_rollout().mask.tobytes())
  data[place] = 2
  data[8:12] = struct.pack("<I", zlib.crc32(bytes(data[12:])))
  with pytest.raises(CorruptRolloutError, match="neither True nor False"):
    decode(bytes(data))


def test_a_header_too_deep_to_read_is_corrupt():
  text = b'{"schema":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
  body = struct.pack("<I", len(text)) + text
  with pytest.raises(CorruptRolloutError):
    decode(b"TISROLL1" + struct.pack("<I", zlib.crc32(body)) + body)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_header_is_a_record_or_a_bad_record(make_rollout, data):
  """Whatever a header says in JSON, nothing but `BadRolloutError` comes of it."""
  json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=6,
  )

  def change(header):
    inside = data.draw(st.sampled_from([header, header["header"], header["arrays"]]))
    inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(json_values)

  mutated = _reheadered(encode(make_rollout()), change)
  with contextlib.suppress(BadRolloutError):
    validate(decode(mutated), Limits(shape=(4, 3, 5), vocab_size=19))
