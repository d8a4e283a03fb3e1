"""What a server says to one prompt, and whether that can be believed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tis_jax.engines.served.errors import EngineAnswerError
from tis_jax.logprobs import Sampling

# A log-prob may exceed 0 by the rounding of an fp32 log-sum-exp, not by more.
_LOGP_SLACK = 1e-3


class Request(NamedTuple):
  """What is asked for one prompt.

  Attributes:
    prompt: ids.
    samples: answers.
    seed: of their noise.
    law: temperature, top-k, top-p, min-p.
    max_new_tokens: at which an answer is cut.
    stop_ids: after any of which it ends.
    vocab_size: ids are below it.
    top_logprobs: how many of the most probable tokens are asked for at each place.
    kept_width: room for the ids that top-k, top-p and min-p keep.
  """

  prompt: Sequence[int]
  samples: int
  seed: int
  law: Sampling
  max_new_tokens: int
  stop_ids: Sequence[int]
  vocab_size: int
  top_logprobs: int = 0
  kept_width: int = 0


class Answer(NamedTuple):
  """One answer, as a server gave it.

  Attributes:
    tokens: ids, the stop token among them.
    logp: their log-probs, None where the server has none.
    finish: "stop", "length" or "abort".
    label: of the params that it says it used; None where it does not say.
    prompt: the ids that it says it continued; None where it does not say.
    top: for each token {id: log-prob} of the most probable ones.
    kept: for each token the ids that truncated sampling kept, nothing where they are
      too many; None where the server does not say.
    refused: of an "abort", why it cannot be used, where that is known.
  """

  tokens: Sequence[int]
  logp: Sequence[float | None]
  finish: str
  label: str | None = None
  prompt: Sequence[int] | None = None
  top: Sequence[dict[int, float]] | None = None
  kept: Sequence[Sequence[int]] | None = None
  refused: str = "the server aborted it"


def check(answer: Answer, request: Request) -> None:
  """Refuses an answer that nobody may train on.

  Raises:
    EngineAnswerError: says what is wrong with it.
  """
  tokens, logp = answer.tokens, answer.logp
  if answer.finish == "abort":
    raise EngineAnswerError(answer.refused)
  if answer.prompt is not None and list(answer.prompt) != list(request.prompt):
    raise EngineAnswerError(
      f"it continued {len(answer.prompt)} ids that are not the {len(request.prompt)}"
      " of the prompt: does it put a token in front, or encode text again?"
    )
  if len(tokens) != len(logp):
    raise EngineAnswerError(
      f"{len(tokens)} tokens and {len(logp)} log-probs: some were dropped"
    )
  if not tokens:
    raise EngineAnswerError("the answer has no token, not even one that ends it")
  if len(tokens) > request.max_new_tokens:
    raise EngineAnswerError(
      f"{len(tokens)} tokens, asked for {request.max_new_tokens} at most"
    )
  for token in tokens:
    if not _is_id(token, request.vocab_size):
      raise EngineAnswerError(
        f"token {token!r} is not an id below {request.vocab_size}"
      )
  for place, value in enumerate(logp):
    if value is None:
      continue
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise EngineAnswerError(f"the log-prob of token {place} is {value!r}")
    if value > _LOGP_SLACK:
      raise EngineAnswerError(
        f"the log-prob of token {place} is {value:.4g}, and none is above 0"
      )
  stops = set(request.stop_ids)
  early = [place for place, token in enumerate(tokens[:-1]) if token in stops]
  if early:
    raise EngineAnswerError(f"it goes on after the stop token at place {early[0]}")
  if answer.finish == "stop" and tokens[-1] not in stops:
    raise EngineAnswerError(
      "it stopped by itself, and its last token is no stop token: the one that ended it"
      " was stripped, and its log-prob with it"
    )
  short = len(tokens) < request.max_new_tokens and tokens[-1] not in stops
  if answer.finish == "length" and short:
    raise EngineAnswerError(
      f"cut at {len(tokens)} tokens, before the limit of {request.max_new_tokens}: its"
      " context is too short"
    )


def _is_id(token: Any, vocab_size: int) -> bool:
  return isinstance(token, int) and 0 <= token < vocab_size
