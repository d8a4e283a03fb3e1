"""The plan of rows without padding: several responses in one, behind their prompt.

It is made on the host, in numpy, and its shape follows from that of the batch, so that
nothing is compiled anew. A packed row holds segments, one behind the other: prompts,
each without its last token, and responses, each led by that token and without its own
last. A token attends to what stands before it in its segment, and to the prompt that
its segment goes on from. So a slot of its own predicts every response token, and a
prompt is computed once for all responses to it that a row holds.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import Batch, take_rows
from tis_jax.learner.mesh import row_shards
from tis_jax.learner.microbatch import check_rows
from tis_jax.numerics.arrays import Array
from tis_jax.rollouts import up_to_last

# A slot's attention costs what its row is long, so rows are joined up to here alone.
_SLOTS = 128


class Packing(NamedTuple):
  """Packed rows, int32 `[R, passes, mini-batches, L]` each; inside, `[R, L]` of a pass.

  Merged but for L they are rows as `microbatch.split` takes them apart.

  Attributes:
    tokens: of prompts and responses; 0 in padding.
    positions: of each in its own prompt and response together, from 0.
    segments: which segment of the row it is in, from 1; 0 is padding.
    prompts: the segment of the prompt that its own goes on from; 0 in a prompt.
    targets: which response token it predicts, `b * T + t` of its mini-batch; -1 for
      none.
  """

  tokens: Array
  positions: Array
  segments: Array
  prompts: Array
  targets: Array


class PackedBatch(NamedTuple):
  """A batch and its packed rows: what an update takes in place of the batch.

  Attributes:
    batch: as it was.
    packing: of its prompts and responses.
  """

  batch: Batch
  packing: Packing


class PackedShape(NamedTuple):
  """What packed rows are compiled for.

  Attributes:
    rows: R of a pass, over all devices.
    length: L, slots of a row.
    passes: the most that a mini-batch can need.
  """

  rows: int
  length: int
  passes: int


def packed_shape(batch: Batch, algorithm: Algorithm, mesh: Mesh) -> PackedShape:
  """The shape of the packed rows of every batch that is shaped like this one.

  A pass has as many slots as one of padded rows: `micro_batches` decides for both. A
  packed row stands for k padded ones, as many as make up 128 slots, at least one; k
  responses of any length fit, so a mini-batch never needs more than `micro_batches`
  passes.

  Args:
    batch: of the update.
    algorithm: of the update.
    mesh: of the update.

  Raises:
    ValueError: its rows do not divide.

  >>> from types import SimpleNamespace as Fake
  >>> batch = Batch(*[np.zeros((64, 40))] * 2, *[np.zeros((64, 25))] * 4,
  ...               *[np.zeros(64)] * 3)
  >>> parts = Fake(mini_batches=2, micro_batches=4)
  >>> packed_shape(batch, parts, Fake(shape={"data": 2, "fsdp": 1}))
  PackedShape(rows=4, length=128, passes=4)
  """
  rows, shards = batch.tokens.shape[0], row_shards(mesh)
  mini, micro = algorithm.mini_batches, algorithm.micro_batches
  check_rows(rows, mini, micro, mesh)
  padded = rows // (shards * mini * micro)
  length = batch.prompts.shape[1] + batch.tokens.shape[1] - 1
  joined = max(
    k
    for k in range(1, padded + 1)
    if padded % k == 0 and (k == 1 or k * length <= _SLOTS)
  )
  return PackedShape(padded // joined * shards, joined * length, micro)


def pack(batch: Batch, algorithm: Algorithm, mesh: Mesh) -> PackedBatch:
  """A batch with its packed rows; mini-batches hold the rows that they always do.

  Responses to the same prompt come one after the other, longest first, those of the
  largest group before all others. Each goes where it costs the fewest slots, which is
  where its prompt stands already, and of such rows into the fullest. A row in which
  nothing was sampled goes nowhere.

  Args:
    batch: numpy, in the update's shape.
    algorithm: of the update.
    mesh: of the update.

  Raises:
    ValueError: a response without a prompt, or rows that do not divide.
  """
  shape = packed_shape(batch, algorithm, mesh)
  mini = algorithm.mini_batches
  held = np.asarray(batch.mask).any(axis=1)
  if (held & ~np.asarray(batch.prompt_mask).any(axis=1)).any():
    raise ValueError(
      "a response has no prompt, so nothing predicts its first token; give it one, or "
      "an empty mask"
    )
  plans = [_plan(take_rows(batch, slice(m, None, mini)), shape) for m in range(mini)]

  def dealt(*columns):
    parts = np.stack(columns).reshape(mini, shape.passes, shape.rows, shape.length)
    return np.ascontiguousarray(parts.transpose(2, 1, 0, 3))

  return PackedBatch(batch, Packing(*map(dealt, *plans)))


class _Segments(NamedTuple):
  """Stretches of slots, int `[N]` each: a response to `source`, or its prompt.

  `number` counts the segments of a row from 1; `prompt` is the number of the segment
  that a response goes on from, 0 for none, and -1 of a prompt itself.
  """

  row: Array
  start: Array
  length: Array
  number: Array
  prompt: Array
  source: Array


def _plan(batch: Batch, shape: PackedShape) -> Packing:
  """The packed rows of one mini-batch, the full ones first."""
  given = np.asarray(batch.prompt_mask).sum(axis=1)
  placed = _placed(batch, given - 1, shape)
  number = shape.rows * shape.passes * shape.length
  tokens, positions, segments, prompts = np.zeros((4, number), np.int32)
  targets = np.full(number, -1, np.int32)
  of = np.repeat(np.arange(len(placed.length)), placed.length)
  segment = _Segments(*(x[of] for x in placed))
  inside = np.arange(len(of)) - (np.cumsum(placed.length) - placed.length)[of]
  slot = segment.row * shape.length + segment.start + inside
  is_prompt = segment.prompt < 0
  # In the row that the padded form feeds; a response is led by its prompt's last token.
  last = batch.prompts.shape[1] - 1
  shared = given[segment.source] - 1
  column = inside + last - np.where(is_prompt, shared, 0)
  fed = np.concatenate([batch.prompts, batch.tokens], axis=1)
  tokens[slot] = fed[segment.source, column]
  positions[slot] = inside + np.where(is_prompt, 0, shared)
  segments[slot] = segment.number
  prompts[slot] = np.maximum(segment.prompt, 0)
  target = segment.source * batch.tokens.shape[1] + inside
  targets[slot] = np.where(is_prompt, -1, target)
  found = (tokens, positions, segments, prompts, targets)
  return Packing(*(x.reshape(-1, shape.length) for x in found))


def _placed(batch: Batch, shared, shape: PackedShape) -> _Segments:
  """Where everything goes; `shared` are the slots that each row's prompt takes."""
  lengths = up_to_last(np.asarray(batch.mask)).sum(axis=1)
  number = shape.rows * shape.passes
  free, count = np.full(number, shape.length), np.zeros(number, int)
  found: list[tuple[int, ...]] = []

  def take(row, length, prompt, source):
    start = shape.length - free[row]
    free[row] -= length
    count[row] += 1
    found.append((row, start, length, count[row], prompt, source))

  for rows in _by_prompt(batch, lengths):
    # The segment of this prompt in each packed row, 0 where it is not.
    at = np.zeros(number, int)
    for b in rows:
      cost = lengths[b] + np.where(at > 0, 0, shared[b])
      # The least cost, then the fullest row, then the first.
      preferred = np.where(cost > free, np.inf, cost * (shape.length + 1) + free)
      row = int(np.argmin(preferred))
      if shared[b] and not at[row]:
        take(row, shared[b], -1, b)
        at[row] = count[row]
      take(row, lengths[b], at[row], b)
  return _Segments(*np.array(found, int).reshape(-1, 6).T)


def _by_prompt(batch: Batch, lengths) -> list[list[int]]:
  """Rows of equal prompts, longest first, those that take most slots before others."""
  prompts = np.where(batch.prompt_mask, batch.prompts, -1)
  found: dict[bytes, list[int]] = {}
  for b in np.argsort(-lengths, kind="stable"):
    if lengths[b]:
      found.setdefault(prompts[b].tobytes(), []).append(int(b))
  return sorted(found.values(), key=lambda rows: -lengths[rows].sum())
