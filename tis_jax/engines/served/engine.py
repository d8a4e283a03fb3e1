"""Any server as an engine: prompts out, answers in, each of them looked at."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from tis_jax.engines.protocol import Generation
from tis_jax.engines.served.answer import Answer, Request, check
from tis_jax.engines.served.errors import (
  EngineAnswerError,
  EngineDownError,
  EngineRefusedError,
  WrongParamsError,
)
from tis_jax.engines.served.probe import Probe
from tis_jax.logprobs import Sampling, truncates
from tis_jax.rollouts import ABORTED, LENGTH, STOP, tight_sets
from tis_jax.store import digest as digest_of

_AT_ONCE = 64
_DEATHS = 3
_NOTHING = Answer((), (), "length", kept=())
_FINISHES = {"stop": STOP, "length": LENGTH, "abort": ABORTED}


class Server(Protocol):
  """How one kind of server is spoken to.

  Attributes:
    engine: its name and version, for the record.
    dtype: of its params and activations, in words.
    logprobs: how its log-probs are made, see `tis_jax.logprobs.Sampling`.
  """

  engine: str
  dtype: str
  logprobs: str

  def ask(self, request: Request) -> Sequence[Answer]:
    """Has a prompt answered, `request.samples` times.

    Raises:
      EngineDownError: it does not answer.
      EngineRefusedError, EngineAnswerError: it says no, or nonsense.
    """
    ...

  def load(self, params: Mapping[str, np.ndarray], label: str) -> None:
    """Has it sample from these params from now on, and call them `label`.

    Returns when it does. Starts the server, or starts it again, where it is this
    process's own and not there.

    Raises:
      EngineError: it does not.
    """
    ...

  def close(self) -> None:
    """Ends the server, if it is this process's own."""
    ...


class ServedEngine:
  """An engine behind a server, with the law that it samples by.

  What cannot be trained on is not handed out: an answer that is no answer becomes an
  aborted row and is counted, too many of them are an error. After every update the
  server's log-probs are held against a forward pass by the same params.

  Attributes:
    sampling: the law, and how the server makes its log-probs.
    params_digest: of the params that the server was given last.
    refused: {reason: answers} that were aborted.

  Args:
    server: how it is spoken to.
    law: temperature, top-k, top-p and min-p.
    max_new_tokens: T.
    eos_ids: a response ends with any of these.
    pad_id: fills the tokens after the end.
    vocab_size: ids are below it.
    top_logprobs: how many of the most probable tokens are recorded.
    kept_width: room for the ids that top-k, top-p and min-p keep.
    probe: asks after every update what the server holds; None trusts it.
    whole: makes params of what is published, where that is an adapter; None where it is
      params.
    say: told in a sentence what went wrong and was mended.
  """

  def __init__(
    self,
    server: Server,
    law: Sampling,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    vocab_size: int,
    top_logprobs: int = 0,
    kept_width: int = 0,
    probe: Probe | None = None,
    whole: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None,
    say: Callable[[str], None] = print,
  ):
    self._server, self._law, self._probe, self._say = server, law, probe, say
    self._room, self._pad_id, self._top = max_new_tokens, pad_id, top_logprobs
    self._asked = {
      "max_new_tokens": max_new_tokens,
      "stop_ids": tuple(eos_ids),
      "vocab_size": vocab_size,
      "top_logprobs": top_logprobs,
      "kept_width": kept_width,
    }
    self._whole = whole
    self._params: Mapping[str, np.ndarray] | None = None
    self._version, self.params_digest, self._label = -1, "", ""
    self._pool = ThreadPoolExecutor(_AT_ONCE)
    self.refused: Counter[str] = Counter()

  @property
  def sampling(self) -> Sampling:
    return dataclasses.replace(
      self._law,
      logprobs=self._server.logprobs,
      engine=self._server.engine,
      dtype=self._server.dtype,
    )

  def update(
    self, params: Mapping[str, np.ndarray], version: int, digest: str = ""
  ) -> None:
    """Has the server sample from these params, and looks whether it does.

    Args:
      params: arrays by name.
      version: number of their publication.
      digest: of the arrays, from whoever has made it already.

    Raises:
      EngineError: it cannot be had to.
      WrongParamsError: it says that it does, and its log-probs say otherwise.
    """
    digest = digest or digest_of(params)
    self._label = f"{version}-{digest}"
    params = params if self._whole is None else self._whole(params)
    self._server.load(params, self._label)
    self._params, self._version, self.params_digest = params, version, digest
    self._look()

  def generate(
    self,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    samples: int,
    key: jax.Array,
    greedy: bool = False,
  ) -> Generation:
    """Samples responses, see `Engine.generate`. A server that dies is started again.

    A row without a prompt is padding: it is not asked for, and gets no response.

    Raises:
      RuntimeError: `update` has not been called.
      EngineDownError: it died again and again.
      EngineAnswerError: half of the answers or more cannot be used.
      WrongParamsError: it names other params than it was given.
    """
    if self._params is None:
      raise RuntimeError("there are no params to generate with: call `update` first")
    law = Sampling(temperature=0.0) if greedy else self._law
    seeds = np.asarray(jax.random.bits(key, (len(prompts),))) >> 1
    requests = [
      Request(
        prompt=row[held].tolist(),
        samples=samples,
        seed=int(seed),
        law=law,
        **self._asked,
      )
      for row, held, seed in zip(prompts, prompt_mask, seeds, strict=True)
    ]
    answers = self._answered(requests)
    return self._generation(answers, samples)

  def close(self) -> None:
    """Ends the server, if it is this process's own."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    self._server.close()

  def _look(self) -> None:
    if self._probe is None or self._params is None:
      return
    found = list(self._pool.map(self._probed, self._probe.requests))
    bad = [error for error in found if isinstance(error, EngineAnswerError)]
    if len(bad) == len(found):
      raise bad[0]
    # Those that nobody may train on say nothing about the params either.
    answers = [_NOTHING if isinstance(x, EngineAnswerError) else x for x in found]
    self._probe.judge(answers, self._params)

  def _probed(self, request: Request) -> Answer | EngineAnswerError:
    try:
      answer, *_ = self._server.ask(request)
      check(answer, request)
    except EngineAnswerError as error:
      return error
    self._check_label(answer)
    return answer

  def _answered(self, requests: Sequence[Request]) -> list[Sequence[Answer | None]]:
    """The answers to each request; None for one that cannot be used."""
    assert self._params is not None
    deaths = 0
    while True:
      try:
        if deaths:
          self._server.load(self._params, self._label)
          self._look()
        return list(self._pool.map(self._ask, requests))
      except EngineDownError as error:
        deaths += 1
        if deaths == _DEATHS:
          raise
        self._say(f"{error}; its batch is sampled again")
        time.sleep(2.0**deaths - 1)

  def _ask(self, request: Request) -> Sequence[Answer | None]:
    if not request.prompt:
      return [_NOTHING] * request.samples
    try:
      answers = self._server.ask(request)
      if len(answers) != request.samples:
        raise EngineAnswerError(f"{len(answers)} answers, asked for {request.samples}")
    except (EngineAnswerError, EngineRefusedError) as error:
      return [self._refuse(error)] * request.samples
    return [self._believed(answer, request) for answer in answers]

  def _believed(self, answer: Answer, request: Request) -> Answer | None:
    self._check_label(answer)
    try:
      check(answer, request)
    except EngineAnswerError as error:
      return self._refuse(error)
    return answer

  def _refuse(self, error: Exception) -> None:
    self.refused[str(error)] += 1

  def _check_label(self, answer: Answer) -> None:
    if answer.label is not None and answer.label != self._label:
      raise WrongParamsError(
        f"{self._server.engine} sampled from params that it calls {answer.label!r},"
        f" and was given {self._label!r}: its update did not take, or somebody else"
        " updates it"
      )

  def _generation(
    self, answers: Sequence[Sequence[Answer | None]], samples: int
  ) -> Generation:
    flat = [answer for group in answers for answer in group]
    rows, room, bad = len(flat), self._room, sum(answer is None for answer in flat)
    if bad:
      worst = self.refused.most_common(1)[0][0]
      self._say(f"{bad} of {rows} answers are set aside; most often: {worst}")
      if 2 * bad >= rows:
        raise EngineAnswerError(
          f"{bad} of {rows} answers of {self._server.engine} cannot be used; most"
          f" often: {worst}"
        )
    tokens = np.full((rows, room), self._pad_id, np.int32)
    mask = np.zeros((rows, room), bool)
    logp = np.zeros((rows, room), np.float32)
    finish = np.full(rows, ABORTED, np.int8)
    for row, answer in enumerate(flat):
      if answer is not None:
        length = len(answer.tokens)
        tokens[row, :length], mask[row, :length] = answer.tokens, True
        logp[row, :length] = [np.nan if x is None else x for x in answer.logp]
        finish[row] = _FINISHES[answer.finish]
    present = mask & ~np.isnan(logp)
    more: dict[str, Any] = {}
    if self._top:
      more |= _top(flat, room, self._top)
    if truncates(self._law):
      more |= _kept(flat, room)
    return Generation(
      tokens=tokens,
      mask=mask,
      sampler_logp=logp,
      versions=np.full((rows, room), self._version, np.int32),
      finish_reasons=finish,
      present=None if (present == mask).all() else present,
      **more,
    )


def _top(answers: Sequence[Answer | None], room: int, count: int) -> dict[str, Any]:
  tokens = np.full((len(answers), room, count), -1, np.int32)
  logp = np.full(tokens.shape, -np.inf, np.float32)
  for row, answer in enumerate(answers):
    for place, laws in enumerate(() if answer is None else answer.top or ()):
      best = sorted(laws.items(), key=lambda item: -item[1])[:count]
      for column, (token, value) in enumerate(best):
        tokens[row, place, column], logp[row, place, column] = token, value
  return {"top_tokens": tokens, "top_logp": logp}


def _kept(answers: Sequence[Answer | None], room: int) -> dict[str, Any]:
  if any(answer is not None and answer.kept is None for answer in answers):
    return {}  # The record then says that it lacks them, and what to do.
  sets: list[Sequence[int]] = []
  for answer in answers:
    kept = [] if answer is None or answer.kept is None else list(answer.kept)
    sets += kept + [()] * (room - len(kept))
  offsets, ids = tight_sets(sets)
  return {"kept_offsets": offsets, "kept_ids": ids}
