"""SGLang: ids in and out over HTTP, new params from a directory.

By the documentation of its native API (https://docs.sglang.io, read 2026-11). Tested
against a server that speaks what is documented there, and never run against SGLang
itself, whose kernels have no build for the machines this was written on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tis_jax.engines.served.answer import Answer, Request
from tis_jax.engines.served.errors import EngineAnswerError, EngineError
from tis_jax.engines.served.handover import Handover
from tis_jax.engines.served.http import Client


class SGLang:
  """An SGLang server, see `Server`.

  Its log-probs are of all logits at the temperature, before top-k, top-p and min-p.

  Attributes:
    engine: "sglang" and its version, once it has answered.
    dtype: of its params and activations, as it was started with.
    logprobs: "raw".

  Args:
    graph: of the decoder whose params it gets.
    url: of the server.
    dtype: that it was started with.
    folder: for params; the server must see it too.
  """

  logprobs = "raw"

  def __init__(self, graph: nnx.GraphDef, *, url: str, dtype: str, folder: Path):
    if not url:
      raise EngineError("SGLang needs sampler.sglang.url, of a server that runs")
    self.engine, self.dtype = "sglang", dtype
    self._client, self._handover = Client(url), Handover(graph, folder)

  def ask(self, request: Request) -> Sequence[Answer]:
    law = request.law
    said = self._client.post(
      "/generate",
      {
        "input_ids": list(request.prompt),
        "sampling_params": {
          "n": request.samples,
          "temperature": law.temperature,
          "top_k": law.top_k or -1,
          "top_p": law.top_p,
          "min_p": law.min_p,
          "max_new_tokens": request.max_new_tokens,
          "stop_token_ids": list(request.stop_ids),
          "skip_special_tokens": False,
          "no_stop_trim": True,
          "sampling_seed": request.seed % 2**31,
        },
        "return_logprob": True,
        "top_logprobs_num": request.top_logprobs,
      },
    )
    try:
      return [_answer(one) for one in (said if isinstance(said, list) else [said])]
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise EngineAnswerError(
        f"SGLang's answer lacks what its documentation says: {error!r}"
      ) from error

  def load(self, params: Mapping[str, np.ndarray], label: str) -> None:
    path = self._handover.write(params, label)
    self._client.post("/pause_generation", {"mode": "abort"})
    try:
      said = self._client.post(
        "/update_weights_from_disk",
        {"model_path": str(path), "weight_version": label, "flush_cache": True},
      )
    finally:
      self._client.post("/continue_generation", {})
    if not said.get("success"):
      raise EngineError(f"SGLang refuses new params: {said.get('message')}")
    self._handover.taken(path)
    version = (self._client.get("/get_server_info") or {}).get("version")
    self.engine = f"sglang {version}" if version else "sglang"

  def close(self) -> None:
    self._handover.clear()


def _answer(said: Mapping[str, Any]) -> Answer:
  told = said["meta_info"]
  places = told["output_token_logprobs"]
  tokens = [int(token) for token in said["output_ids"]]
  if [int(place[1]) for place in places] != tokens[: len(places)]:
    raise EngineAnswerError("the log-probs are of other ids than the answer's")
  return Answer(
    tokens=tokens,
    logp=[place[0] for place in places],
    finish=told["finish_reason"]["type"],
    label=told.get("weight_version"),
    top=[
      {int(token): logp for logp, token, *_ in place or ()}
      for place in told.get("output_top_logprobs") or ()
    ],
  )
