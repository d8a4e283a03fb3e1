"""Any server with OpenAI's completions that gives ids back when it is asked to.

`POST /v1/completions` takes a prompt as ids; log-probs stand in `logprobs`, and ids in
`token_ids` where `return_token_ids` is known (vLLM has it since 0.10.2). A server
without it gives text, which nobody can turn into the sampled ids again: refused. There
is no way in for new params, so such a server samples from one policy only: for looking
at an engine (`benchmarks/atlas.py`), not for a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tis_jax.engines.served.answer import Answer, Request
from tis_jax.engines.served.errors import EngineAnswerError, EngineError
from tis_jax.engines.served.http import Client

_FINISHES = {"stop": "stop", "length": "length"}


class Completions:
  """A server that speaks OpenAI's completions, see `Server`.

  Attributes:
    engine: in words, as given.
    dtype: in words, as given.
    logprobs: how its log-probs are made; see `tis_jax.logprobs.Sampling`.

  Args:
    url: up to `/v1`.
    model: that it serves.
    engine: its name, for records.
    dtype: of its params and activations.
    logprobs: how its log-probs are made.
  """

  def __init__(
    self,
    url: str,
    *,
    model: str,
    engine: str,
    dtype: str,
    logprobs: str = "untempered",
  ):
    self.engine, self.dtype, self.logprobs = engine, dtype, logprobs
    self._client, self._model, self._loaded = Client(url), model, False

  def ask(self, request: Request) -> Sequence[Answer]:
    law = request.law
    body = {
      "model": self._model,
      "prompt": list(request.prompt),
      "n": request.samples,
      "temperature": law.temperature,
      "top_p": law.top_p,
      "max_tokens": request.max_new_tokens,
      "logprobs": request.top_logprobs,
      "seed": request.seed % 2**31,
      "return_token_ids": True,
      "add_special_tokens": False,
    }
    # Of no standard; asked for only by those who want them.
    body |= {"top_k": law.top_k} if law.top_k else {}
    body |= {"min_p": law.min_p} if law.min_p else {}
    said = self._client.post("/v1/completions", body)
    try:
      choices = sorted(said["choices"], key=lambda choice: choice.get("index", 0))
      return [_answer(choice) for choice in choices]
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise EngineAnswerError(
        f"{self.engine}'s answer lacks what the protocol says: {error!r}"
      ) from error

  def load(self, params: Mapping[str, np.ndarray], label: str) -> None:
    if self._loaded:
      raise EngineError(
        f"{self._client.url}: OpenAI's protocol has no way in for new params"
      )
    self._loaded = True

  def close(self) -> None:
    pass


def _answer(choice: Mapping[str, Any]) -> Answer:
  tokens = choice.get("token_ids")
  if tokens is None:
    raise EngineAnswerError(
      "the server gives text and no token_ids, and text does not encode to the ids that"
      " were sampled"
    )
  return Answer(
    tokens=[int(token) for token in tokens],
    logp=choice["logprobs"]["token_logprobs"],
    finish=_FINISHES[choice["finish_reason"]],
    prompt=choice.get("prompt_token_ids"),
  )
