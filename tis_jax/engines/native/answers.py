"""The responses of a batch on the host, filled in as they come."""

import numpy as np

from tis_jax.engines.native.draw import Drawn
from tis_jax.engines.native.steps import Block
from tis_jax.engines.protocol import FILL, Generation
from tis_jax.rollouts import ABORTED, LENGTH, STOP

INTERRUPTED = -1
"""A finish reason outside of records: the response goes on (`NativeEngine.go_on`)."""


class Answers:
  """R responses of at most T tokens.

  Attributes:
    count: int32 [R], tokens that each has so far.
    tokens: int32 [R, T].

  Args:
    rows: R.
    room: T.
    pad_id: fills the tokens after the end.
    version: said where nothing was sampled.
    routed: int16 [R, P + T, layers, experts of a token], all -1, for the experts that
      tokens were sent to; None does not record them.
  """

  def __init__(
    self,
    rows: int,
    room: int,
    pad_id: int,
    version: int,
    routed: np.ndarray | None = None,
  ):
    self.count = np.zeros(rows, np.int32)
    self.tokens = np.full((rows, room), pad_id, np.int32)
    self._mask = np.zeros((rows, room), bool)
    self._logp = np.zeros((rows, room), np.float32)
    self._versions = np.full((rows, room), version, np.int32)
    self.finish_reasons = np.full(rows, LENGTH, np.int8)
    self._room_R = np.full(rows, room, np.int32)
    self._further: dict[str, np.ndarray] = {}
    self._routed = routed

  @classmethod
  def of(cls, begun: Generation, room: np.ndarray) -> "Answers":
    """Those that have been begun, to go on with.

    Args:
      begun: whose arrays are copied.
      room: int [R], tokens that each may have.
    """
    rows, length = begun.tokens.shape
    answers = cls(rows, length, pad_id=0, version=0)
    answers.count = begun.mask.sum(axis=1, dtype=np.int32)
    answers.tokens, answers._mask = begun.tokens.copy(), begun.mask.copy()
    answers._logp, answers._versions = begun.sampler_logp.copy(), begun.versions.copy()
    answers.finish_reasons, answers._room_R = begun.finish_reasons.copy(), room
    found = {name: getattr(begun, name) for name in FILL}
    answers._further = {n: x.copy() for n, x in found.items() if x is not None}
    if begun.routed_experts is not None:
      answers._routed = begun.routed_experts.copy()
    answers._end_what_is_full()
    return answers

  def read(self, row: int, prompt: int, routed: np.ndarray | None) -> None:
    """Takes the experts of what was read before a response's next token.

    A token that had been fed in before keeps those that it had then, by which the token
    behind it was drawn: what goes on may be read again by other params.

    Args:
      row: the response.
      prompt: tokens of its prompt.
      routed: int16 [length, layers, experts of a token], of the prompt and of what has
        been said; None where it is not recorded.
    """
    if routed is None or self._routed is None:
      return
    first = self._prompt_length - prompt
    held = self._routed[row, first : first + len(routed)]
    np.copyto(held, routed, where=held < 0)

  def take(self, block: Block, request_B: np.ndarray, version: int) -> int:
    """Takes the tokens of a block.

    Args:
      block: on the host.
      request_B: the response that each slot is drawing, -1 for none.
      version: of the params that drew them.

    Returns:
      How many there were.
    """
    slot, column = np.nonzero(block.mask_BT)
    row = request_B[slot]
    place = self.count[row] + column
    self.tokens[row, place] = block.drawn.tokens[slot, column]
    self._mask[row, place] = True
    self._logp[row, place] = block.drawn.sampler_logp[slot, column]
    self._versions[row, place] = version
    for name in FILL:
      if (found := getattr(block.drawn, name)) is not None:
        self._array(name, found)[row, place] = found[slot, column]
    if self._routed is not None and block.routed_BTLE is not None:
      # A column feeds in the token before the one that it draws.
      fed = self._prompt_length + place - 1
      self._routed[row, fed] = block.routed_BTLE[slot, column]
    np.add.at(self.count, row, 1)
    self.finish_reasons[request_B[block.stopped_B]] = STOP
    self._end_what_is_full()
    return len(row)

  def abort(self, rows) -> None:
    """Says of rows that they were given up."""
    self.finish_reasons[rows] = ABORTED

  def interrupt(self) -> None:
    """Says of all that they go on."""
    self.finish_reasons[:] = INTERRUPTED

  def generation(self, blank: Drawn) -> Generation:
    """As the protocol has it.

    Args:
      blank: of no token, its dtypes and shapes: what a record holds even where nothing
        was drawn.
    """
    for name in FILL:
      if (found := getattr(blank, name)) is not None:
        self._array(name, np.zeros((1, 1, *found.shape[1:]), found.dtype))
    return Generation(
      tokens=self.tokens,
      mask=self._mask,
      sampler_logp=self._logp,
      versions=self._versions,
      finish_reasons=self.finish_reasons,
      **self._further,
      routed_experts=self._routed,
    )

  @property
  def _prompt_length(self) -> int:
    """P."""
    assert self._routed is not None
    return self._routed.shape[1] - self.tokens.shape[1]

  def _end_what_is_full(self) -> None:
    ongoing = self.finish_reasons == INTERRUPTED
    self.finish_reasons[ongoing & (self.count >= self._room_R)] = LENGTH

  def _array(self, name: str, like: np.ndarray) -> np.ndarray:
    if name not in self._further:
      shape = (*self.tokens.shape, *like.shape[2:])
      self._further[name] = np.full(shape, FILL[name], like.dtype)
    return self._further[name]
