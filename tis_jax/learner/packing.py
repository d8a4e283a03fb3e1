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

# A slot's attention costs what its row is long, so rows whose prompts differ are joined
# up to here alone.
_SLOTS = 128
# A decoder's, where nobody tells it.
_WIDTH = 128


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


def packed_shape(
  batch: Batch, algorithm: Algorithm, mesh: Mesh, width: int = _WIDTH
) -> PackedShape:
  """The shape of packed rows: of every batch that is shaped and grouped like this one.

  A packed row stands for k padded ones, of P + T - 1 slots each. Where the batch has
  its rows in groups of a prompt, it holds k full responses behind one prompt, in
  P - 1 + k T slots; k is what costs least, at `width` + L for a slot of a row of L.
  Else, and where as many responses fit such rows and passes can be left out, it has
  k (P + T - 1) slots, up to 128. Either way all rows fit, whatever the lengths of their
  responses, in `micro_batches` passes at most, none of which has more slots than one of
  padded rows.

  Args:
    batch: of the update, in numpy.
    algorithm: of the update.
    mesh: of the update.
    width: D of the decoder: beside its attention, a slot costs about as much as the
      attention of so many slots.

  Raises:
    ValueError: its rows do not divide.

  >>> from types import SimpleNamespace as Fake
  >>> prompts, response = np.arange(64).repeat(40).reshape(64, 40), np.ones((64, 25))
  >>> batch = Batch(prompts, prompts >= 0, *[response] * 4, *[np.zeros(64)] * 3)
  >>> parts = Fake(mini_batches=2, micro_batches=4), Fake(shape={"data": 2, "fsdp": 1})
  >>> packed_shape(batch, *parts)
  PackedShape(rows=4, length=128, passes=4)
  >>> packed_shape(batch._replace(prompts=prompts // 8), *parts)
  PackedShape(rows=2, length=139, passes=4)
  """
  rows, shards = batch.tokens.shape[0], row_shards(mesh)
  mini, micro = algorithm.mini_batches, algorithm.micro_batches
  check_rows(rows, mini, micro, mesh)
  padded = rows // (shards * mini * micro)
  prompt, response = batch.prompts.shape[1] - 1, batch.tokens.shape[1]
  together = [k for k in range(1, padded + 1) if padded % k == 0]
  alike = [list(_alike(part).values()) for part in _mini_batches(batch, mini)]

  def fits(k: int) -> bool:
    needed = (sum(-(-len(group) // k) for group in groups) for groups in alike)
    return max(needed) <= padded // k * shards * micro

  def cost(k: int) -> float:
    return (response + prompt / k) * (width + prompt + k * response)

  k, one = min(filter(fits, together), key=cost), prompt + response
  length = prompt + k * response
  joined = max(k for k in together if k == 1 or k * one <= _SLOTS)
  if k == 1 or (micro > 1 and k <= joined):
    k, length = joined, joined * one
  return PackedShape(padded // k * shards, length, micro)


def pack(
  batch: Batch, algorithm: Algorithm, mesh: Mesh, width: int = _WIDTH
) -> PackedBatch:
  """A batch with its packed rows; mini-batches hold the rows that they always do.

  Responses to the same prompt come one after the other, longest first, those of the
  largest group before all others. Each goes where it costs the fewest slots, which is
  where its prompt stands already, and of such rows into the fullest. A row in which
  nothing was sampled goes nowhere.

  Args:
    batch: numpy, in the update's shape.
    algorithm: of the update.
    mesh: of the update.
    width: see `packed_shape`.

  Raises:
    ValueError: a response without a prompt, or rows that do not divide.
  """
  shape = packed_shape(batch, algorithm, mesh, width)
  mini = algorithm.mini_batches
  held = np.asarray(batch.mask).any(axis=1)
  if (held & ~np.asarray(batch.prompt_mask).any(axis=1)).any():
    raise ValueError(
      "a response has no prompt, so nothing predicts its first token; give it one, or "
      "an empty mask"
    )
  plans = [_plan(part, shape) for part in _mini_batches(batch, mini)]

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
  """Where everything goes; `shared` are the slots that each row's prompt takes.

  There is room: an empty row takes k responses of a prompt before it needs another.
  """
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


def _mini_batches(batch: Batch, mini: int) -> list[Batch]:
  return [take_rows(batch, slice(m, None, mini)) for m in range(mini)]


def _by_prompt(batch: Batch, lengths) -> list[list[int]]:
  """Rows of equal prompts, longest first, those that take most slots before others."""
  order = np.argsort(-lengths, kind="stable")
  groups = _alike(batch, order[: np.count_nonzero(lengths)]).values()
  return sorted(groups, key=lambda rows: -lengths[rows].sum())


def _alike(batch: Batch, order=None) -> dict[bytes, list[int]]:
  """The rows of each prompt, in some order; those without one take no slot."""
  prompts = np.where(batch.prompt_mask, batch.prompts, -1)
  found: dict[bytes, list[int]] = {}
  if order is None:
    order = np.flatnonzero(np.asarray(batch.prompt_mask).any(axis=1))
  for b in order:
    found.setdefault(prompts[b].tobytes(), []).append(int(b))
  return found
