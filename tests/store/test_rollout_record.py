"""The bytes of a record: what goes in comes out, and damage has a name."""

import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tis_jax.store import decode, encode
from tis_jax.store.checks import check_values
from tis_jax.store.errors import (
  BadRolloutError,
  CorruptRolloutError,
  ForeignRolloutError,
  FutureRolloutError,
  NonFiniteRolloutError,
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
    (lambda h: h["header"].update(sampling={"unknown": 1}), CorruptRolloutError),
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


def test_top_tokens_and_their_log_probs_go_together_and_are_looked_at(make_rollout):
  good = make_rollout()
  shape = (*good.mask.shape, 3)
  tokens = np.broadcast_to(np.int32([4, 2, -1]), shape).copy()
  logp = np.broadcast_to(np.float32([-0.6, -1.0, -np.inf]), shape).copy()

  def check(**changes):
    rollout = dataclasses.replace(good, top_tokens=tokens, top_logp=logp)
    rollout = dataclasses.replace(rollout, **changes)
    encode(rollout)
    check_values(rollout, vocab_size=19)

  check()
  for fill, place, error in (
    (np.nan, 0, NonFiniteRolloutError),
    (-np.inf, 1, NonFiniteRolloutError),
    (0.0, 2, RolloutValueError),
    (0.0, 1, RolloutValueError),
  ):
    bad = logp.copy()
    bad[..., place] = fill
    with pytest.raises(error, match="top_"):
      check(top_logp=bad)
    check(top_logp=np.where(good.mask[..., None], logp, bad))  # or under the mask
  with pytest.raises(RolloutValueError, match="top_tokens has an id outside"):
    check(top_tokens=np.where(tokens == 4, 19, tokens).astype(np.int32))
  with pytest.raises(RolloutShapeError, match="go together"):
    check(top_logp=None)
  with pytest.raises(RolloutShapeError, match="go together"):
    check(top_logp=logp[..., :2].copy())


def _with(rollout, name, value):
  """The rollout with one entry, of a sampled token or row, changed."""
  array = getattr(rollout, name).copy()
  array[tuple(0 for _ in array.shape)] = value
  return dataclasses.replace(rollout, **{name: array})


@pytest.mark.parametrize(
  ("name", "value", "error"),
  [
    ("sampler_logp", np.nan, NonFiniteRolloutError),
    ("sampler_logp", -np.inf, NonFiniteRolloutError),
    ("sampler_logp", 0.5, RolloutValueError),
    ("rewards", np.nan, NonFiniteRolloutError),
    ("versions", 8, FutureRolloutError),
    ("versions", -1, RolloutValueError),
    ("tokens", -1, RolloutValueError),
    ("tokens", 19, RolloutValueError),
  ],
)
def test_bad_values_have_names(make_rollout, name, value, error):
  limits = {"learner_version": 7, "vocab_size": 19, "shape": (4, 3, 5), "run": ""}
  good = make_rollout(version=7)
  check_values(good, **limits)
  with pytest.raises(error):
    check_values(_with(good, name, value), **limits)


def test_kept_mass_prompts_runs_and_shapes_are_checked(make_rollout):
  good = make_rollout()
  with pytest.raises(NonFiniteRolloutError, match="kept_mass"):
    kept_mass = np.where(good.mask, np.inf, 1).astype(np.float32)
    check_values(dataclasses.replace(good, kept_mass=kept_mass))
  greedy = np.full_like(good.rewards, np.nan)
  with pytest.raises(NonFiniteRolloutError, match="greedy_rewards is not finite"):
    check_values(dataclasses.replace(good, greedy_rewards=greedy))
  with pytest.raises(RolloutShapeError, match="greedy_rewards has shape"):
    encode(dataclasses.replace(good, greedy_rewards=greedy[:2]))
  with pytest.raises(RolloutValueError, match="kept_tokens"):
    kept_tokens = np.full((4, 5, 2), 19, np.int32)
    check_values(dataclasses.replace(good, kept_tokens=kept_tokens), vocab_size=19)
  with pytest.raises(RolloutValueError, match="not among the kept_tokens"):
    kept_tokens = np.where(good.tokens[..., None] == 3, 4, [3, -1]).astype(np.int32)
    check_values(dataclasses.replace(good, kept_tokens=kept_tokens), vocab_size=19)
  kept_tokens[good.tokens != 3] = -1  # sets that did not fit say nothing
  kept_tokens[good.tokens == 3] = [3, 4]
  check_values(dataclasses.replace(good, kept_tokens=kept_tokens), vocab_size=19)
  for mass in (0.0, -0.5, 1.1):
    with pytest.raises(RolloutValueError, match="kept_mass is outside"):
      kept_mass = np.full(good.mask.shape, mass, np.float32)
      check_values(dataclasses.replace(good, kept_mass=kept_mass))
  with pytest.raises(RolloutValueError, match="left"):
    prompt_mask = np.array([[True, False, True]] * 4)
    check_values(dataclasses.replace(good, prompt_mask=prompt_mask))
  with pytest.raises(ForeignRolloutError):
    check_values(good, run="another")
  with pytest.raises(RolloutShapeError):
    check_values(good, shape=(4, 3, 6))
  with pytest.raises(FutureRolloutError):
    header = dataclasses.replace(good.header, version=3)
    check_values(dataclasses.replace(good, header=header), learner_version=2)
