"""llama.cpp: ids in and out over HTTP, a new GGUF file and a new start for new params.

Its limits are held to: its log-probs are those before the temperature, so it samples at
1; and it leaves tokens out of its list of log-probs that are parts of a character, so
an answer whose ids differ from the list's is set aside.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tis_jax.engines.served.answer import Answer, Request
from tis_jax.engines.served.endpoint import Endpoint
from tis_jax.engines.served.errors import EngineAnswerError, EngineError
from tis_jax.models import unflatten, write_gguf
from tis_jax.models.params import config_of

_SCRIPT = Path(__file__).parent / "llama_plugin" / "tis_llama_server.py"
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
_FINISHES = {"eos": "stop", "limit": "length", "word": "stop"}


class LlamaCpp:
  """A llama.cpp server, see `Server`.

  Attributes:
    engine: "llama.cpp".
    dtype: of its params, in llama.cpp's word: "F32", "BF16", "Q8_0" or "Q4_1".
    logprobs: "raw", at temperature 1.

  Args:
    graph: of the decoder whose params it gets.
    template: a GGUF file of the same model; its tokenizer and metadata are kept.
    precision: "float32", "bfloat16", "int8" or "int4".
    folder: for GGUF files and the log.
    python: interpreter of an environment that has xllamacpp, or a llama-server program;
      "" to find the server at `url`.
    url: of a server that runs already, which must have been given the first params.
    slots: answers at once.
    max_length: tokens of a prompt and its answer.
    threads: of the server; 0 for as many as there are cores.
    start_seconds: that its start may take.

  Raises:
    EngineError: neither an interpreter nor a URL.
  """

  logprobs = "raw"

  def __init__(
    self,
    graph: nnx.GraphDef,
    template: Path,
    *,
    precision: str,
    folder: Path,
    python: str = "",
    url: str = "",
    slots: int = 16,
    max_length: int,
    threads: int = 0,
    start_seconds: float = 120.0,
  ):
    self._endpoint = Endpoint(
      python,
      url,
      "llama.cpp needs sampler.llama_cpp.python, the interpreter of an environment that"
      " has xllamacpp (make llama builds one) or a llama-server program, or"
      " sampler.llama_cpp.url",
    )
    self._client = self._endpoint.client
    self.engine, self.dtype = "llama.cpp", _DTYPES[precision]
    self._graph, self._template, self._folder = graph, template, folder
    self._python, self._start_seconds = python, start_seconds
    self._slots, self._max_length = slots, max_length
    self._threads = threads or os.cpu_count() or 1
    self._pool = ThreadPoolExecutor(slots)
    self._loaded = False

  def ask(self, request: Request) -> Sequence[Answer]:
    ask = functools.partial(self._one, request)
    return list(self._pool.map(ask, range(request.samples)))

  def load(self, params: Mapping[str, np.ndarray], label: str) -> None:
    if not self._python:
      if self._loaded:
        raise EngineError(
          f"{self._client.url}: llama-server takes no new params while it runs; give"
          " sampler.llama_cpp.python, and it is started again for each version"
        )
      self._loaded = True
      return
    self._endpoint.stop()
    path = self._folder / f"{label}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    self._clear()
    write_gguf(
      path,
      self._template,
      config_of(self._graph),
      unflatten(self._graph, params),
      self.dtype,
    )
    log = self._folder / "llama_cpp.log"
    self._endpoint.start(self._command(path), {}, log, self._start_seconds)

  def close(self) -> None:
    self._pool.shutdown(wait=False, cancel_futures=True)
    self._endpoint.stop()
    if self._python:
      self._clear()

  def _clear(self) -> None:
    # The log stays: an error may have named it.
    for old in self._folder.glob("*.gguf"):
      old.unlink(missing_ok=True)

  def _command(self, path: Path) -> list[str]:
    port, slots = str(self._endpoint.port), str(self._slots)
    threads = str(self._threads)
    if "python" in Path(self._python).name:
      length = str(self._max_length)
      return [self._python, str(_SCRIPT), str(path), port, slots, length, threads]
    context = str(self._slots * self._max_length)
    line = [self._python, "-m", str(path), "--port", port, "-np", slots]
    line += ["-c", context, "-t", threads, "--host", "127.0.0.1", "--kv-unified"]
    return [*line, "-ctk", "f32", "-ctv", "f32"]

  def _one(self, request: Request, sample: int) -> Answer:
    greedy = request.law.temperature == 0
    said = self._client.post(
      "/completion",
      {
        "prompt": list(request.prompt),
        "n_predict": request.max_new_tokens,
        "n_probs": max(request.top_logprobs, 1),
        "return_tokens": True,
        "temperature": 0.0 if greedy else 1.0,
        "samplers": ["temperature"],
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "seed": (request.seed + sample) % 2**31,
        "cache_prompt": False,
      },
    )
    try:
      return _answer(said, request)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise EngineAnswerError(
        f"llama.cpp's answer lacks what its documentation says: {error!r}"
      ) from error


def _answer(said: Mapping[str, Any], request: Request) -> Answer:
  if said["tokens_evaluated"] != len(request.prompt):
    raise EngineAnswerError(
      f"it read {said['tokens_evaluated']} tokens, the prompt has {len(request.prompt)}"
    )
  places = said["completion_probabilities"]
  tokens = [int(token) for token in said["tokens"]]
  listed = [int(place["id"]) for place in places]
  if tokens != listed:
    # Which log-prob is whose cannot be told; the prompt's other answers are good.
    why = (
      f"log-probs of {len(listed)} tokens for an answer of {len(tokens)}: it leaves out"
      " tokens that are parts of a character"
    )
    return Answer((), (), "abort", refused=why)
  return Answer(
    tokens=tokens,
    logp=[place["logprob"] for place in places],
    finish=_FINISHES[said["stop_type"]],
    top=[
      {int(top["id"]): top["logprob"] for top in place["top_logprobs"]}
      for place in places
    ],
  )
