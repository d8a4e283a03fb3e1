"""What a learner does with bytes from anywhere, and what must be true of the outcome.

Used by the mutations of `test_records.py` and by the coverage-guided `guided.py`.
"""

import struct
import zlib

import numpy as np

from tis_jax.rollouts import (
  BadRolloutError,
  Header,
  Limits,
  Rollout,
  Sampling,
  decode,
  encode,
  up_to_last,
  validate,
)
from tis_jax.store import notes

LIMITS = Limits(run="", shape=(4, 3, 5), group_size=2, vocab_size=19)
VERSION = 7


def framed(header: bytes, arrays: bytes) -> bytes:
  """A record of any header and any arrays, with the length and checksum that fit."""
  padding = bytes(-(16 + len(header)) % 8)
  body = struct.pack("<I", len(header)) + header + padding + arrays
  return b"TISROLL1" + struct.pack("<I", zlib.crc32(body)) + body


def split(data: bytes) -> tuple[bytes, bytes]:
  """The header and the arrays of a good record."""
  (length,) = struct.unpack_from("<I", data, 12)
  start = 16 + length
  return data[16:start], data[start + -start % 8 :]


def good_record() -> bytes:
  """One that is accepted, with garbage where its masks allow it."""
  rng = np.random.default_rng(0)
  rows, prompt, length = LIMITS.shape
  mask = np.arange(length) < np.array([5, 1, 3, 2])[:, None]
  logp = np.where(mask, -rng.exponential(size=mask.shape), np.nan)
  tokens = rng.integers(0, LIMITS.vocab_size, mask.shape)
  rollout = Rollout(
    prompts=rng.integers(0, LIMITS.vocab_size, (rows, prompt)).astype(np.int32),
    prompt_mask=np.arange(prompt) >= np.array([0, 1, 2, 0])[:, None],
    tokens=np.where(mask, tokens, -7).astype(np.int32),
    mask=mask,
    sampler_logp=logp.astype(np.float32),
    versions=np.where(mask, VERSION, 10**6).astype(np.int32),
    rewards=rng.random(rows).astype(np.float32),
    group_ids=(np.arange(rows) // 2).astype(np.int32),
    prompt_ids=np.arange(rows, dtype=np.int32),
    finish_reasons=np.int8([0, 1, 0, 1]),
    header=Header(VERSION, Sampling(dtype="bfloat16")),
  )
  return encode(rollout)


def examine(data: bytes) -> str:
  """Why a record is refused, or "accepted"; any other exception is a find."""
  outcome = "accepted"
  try:
    rollout = decode(data)
    validate(rollout)
    again = encode(rollout)
    assert decode(again).header == rollout.header or _has_nan(rollout.header)
    validate(rollout, LIMITS, learner_version=VERSION)
  except BadRolloutError as error:
    assert str(error) and len(str(error)) < 2000
    return error.reason
  mask = rollout.mask
  assert rollout.shape == LIMITS.shape
  assert ((rollout.versions[mask] >= 0) & (rollout.versions[mask] <= VERSION)).all()
  known = mask if rollout.present is None else mask & rollout.present
  assert np.isfinite(rollout.sampler_logp[known]).all()
  read = rollout.tokens[up_to_last(mask)]
  assert ((read >= 0) & (read < LIMITS.vocab_size)).all()
  assert mask.view(np.uint8).max() <= 1
  return outcome


def examine_note(data: bytes) -> None:
  """The small JSON of a store: read or refused, and nothing else."""
  beat = notes.heartbeat(data)
  assert beat is None or np.isfinite(beat["time"])
  version, seqs = notes.cursor(data)
  assert version is None or all(type(seq) is int for seq in seqs.values())


def _has_nan(header) -> bool:
  return "nan" in repr(header)
