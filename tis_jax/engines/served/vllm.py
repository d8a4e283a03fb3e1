"""vLLM: ids in and out over HTTP, new params through a worker extension.

The server is started here, in an environment of its own, or found at a URL. One that is
found must run as `command` says, and see the folder that params are written to.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tis_jax.engines.served.answer import Answer, Request
from tis_jax.engines.served.endpoint import Endpoint
from tis_jax.engines.served.errors import EngineAnswerError
from tis_jax.engines.served.handover import Handover
from tis_jax.logprobs import truncates

_PLUGIN = Path(__file__).parent / "vllm_plugin"
# On a CPU it would take nine tenths of the memory, which a learner beside it needs too.
_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_CACHE_GIB = "2"
_MODEL = "policy"
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio")
# The log-prob of a token that sampling left out; JSON has no infinity.
_DROPPED = -9998.0
_ENVIRONMENT = {
  "HF_HUB_OFFLINE": "1",
  "TRANSFORMERS_OFFLINE": "1",
  "VLLM_NO_USAGE_STATS": "1",
  "DO_NOT_TRACK": "1",
  # The endpoints that pause, update and resume.
  "VLLM_SERVER_DEV_MODE": "1",
  "PYTHONPATH": str(_PLUGIN),
}


def command(
  python: str, model: Path, port: int, dtype: str, arguments: Sequence[str] = ()
) -> list[str]:
  """How a vLLM server is started that a `VLLM` can talk to.

  Args:
    python: interpreter of an environment that has vLLM.
    model: directory of Hugging Face safetensors.
    port: on this machine.
    dtype: "float32" or "bfloat16".
    arguments: more of them; a later one has the last word.
  """
  return [
    python,
    "-m",
    "vllm.entrypoints.openai.api_server",
    f"--model={model}",
    f"--served-model-name={_MODEL}",
    f"--dtype={dtype}",
    "--host=127.0.0.1",
    f"--port={port}",
    "--skip-tokenizer-init",
    "--enable-scale-out",  # /inference/v1/generate
    # The law that tokens are drawn by, and not the one before the temperature.
    "--logprobs-mode=processed_logprobs",
    "--generation-config=vllm",  # No defaults from the model's folder.
    "--worker-extension-cls=tis_vllm_extension.Extension",
    *arguments,
  ]


class VLLM:
  """A vLLM server, see `Server`.

  Attributes:
    engine: "vllm" and its version, once it runs.
    dtype: "float32" or "bfloat16".
    logprobs: "processed".

  Args:
    graph: of the decoder whose params it gets.
    dtype: of its params and activations.
    folder: for its params and its log; a server elsewhere must see it too.
    python: interpreter of an environment that has vLLM; "" to find the server at `url`.
    url: of a server that runs already.
    arguments: more of the command line of a server that is started.
    max_length: tokens of a prompt and its answer.
    max_logprobs: most that are asked for at one place.
    start_seconds: that its start may take. On a CPU it compiles for minutes in bf16.

  Raises:
    EngineError: neither an interpreter nor a URL.
  """

  logprobs = "processed"

  def __init__(
    self,
    graph: nnx.GraphDef,
    *,
    dtype: str,
    folder: Path,
    python: str = "",
    url: str = "",
    arguments: Sequence[str] = (),
    max_length: int,
    max_logprobs: int = 20,
    start_seconds: float = 900.0,
  ):
    self._endpoint = Endpoint(
      python,
      url,
      "vLLM needs sampler.vllm.python, the interpreter of an environment that has it"
      " (make vllm builds one), or sampler.vllm.url",
    )
    self._client = self._endpoint.client
    self.engine, self.dtype = "vllm", dtype
    self._handover = Handover(graph, folder)
    self._python, self._arguments = python, list(arguments)
    self._max_length, self._logprobs = max_length, max_logprobs
    self._start_seconds = start_seconds

  def ask(self, request: Request) -> Sequence[Answer]:
    law = request.law
    said = self._client.post(
      "/inference/v1/generate",
      {
        "model": _MODEL,
        "token_ids": list(request.prompt),
        "sampling_params": {
          "n": request.samples,
          "temperature": law.temperature,
          "top_k": law.top_k or -1,
          "top_p": law.top_p,
          "min_p": law.min_p,
          "repetition_penalty": 1.0,
          "max_tokens": request.max_new_tokens,
          "stop_token_ids": list(request.stop_ids),
          # The end tokens of the model's own configuration end nothing.
          "ignore_eos": True,
          "logprobs": _asked_for(request),
          "seed": request.seed,
        },
      },
    )
    try:
      choices = sorted(said["choices"], key=lambda choice: choice.get("index", 0))
      return [_answer(choice, request) for choice in choices]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
      raise EngineAnswerError(
        f"vLLM's answer lacks what its documentation says: {error!r}"
      ) from error

  def load(self, params: Mapping[str, np.ndarray], label: str) -> None:
    folder = self._handover.write(params, label)
    if self._endpoint.must_start:
      self._start(folder)
    else:
      self._client.post("/pause?mode=wait")
      call = {"method": "tis_load", "kwargs": {"path": str(folder)}}
      self._client.post("/collective_rpc", call)
      self._client.post("/reset_prefix_cache")
    self._client.post("/update_weight_version", {"new_version": label})
    self._client.post("/resume")
    self._handover.taken(folder)

  def close(self) -> None:
    self._endpoint.stop()
    self._handover.clear()

  def _start(self, folder: Path) -> None:
    own = [f"--max-model-len={self._max_length}", f"--max-logprobs={self._logprobs}"]
    if not any(map(os.path.exists, _ACCELERATORS)):
      # A prompt that is read in parts sets its generator back, which PyTorch's cannot
      # be on a CPU: the engine dies of it (seen in 0.32.0).
      own.append("--no-enable-chunked-prefill")
    port, arguments = self._endpoint.port, [*own, *self._arguments]
    line = command(self._python, folder, port, self.dtype, arguments)
    log = self._handover.folder / "vllm.log"
    cache = {_CACHE: os.environ.get(_CACHE, _CACHE_GIB)}
    self._endpoint.start(line, _ENVIRONMENT | cache, log, self._start_seconds)
    self.engine = f"vllm {self._client.get('/version')['version']}"


def _asked_for(request: Request) -> int:
  """Log-probs a place: one more than a kept set has room for tells if it fits."""
  truncated = truncates(request.law)
  return max(request.top_logprobs, request.kept_width + 1 if truncated else 0)


def _answer(choice: Mapping[str, Any], request: Request) -> Answer:
  places = choice["logprobs"]["content"]
  tokens = [int(token) for token in choice["token_ids"]]
  if [place["token_id"] for place in places] != tokens[: len(places)]:
    raise EngineAnswerError("the log-probs are of other ids than the answer's")
  versions = choice.get("weight_versions") or []
  labels = {version["version"] for version in versions}
  if len(labels) > 1:
    raise EngineAnswerError(f"an answer of several versions: {', '.join(labels)}")
  top = [
    {int(t["token_id"]): t["logprob"] for t in place.get("top_logprobs") or ()}
    for place in places
  ]
  return Answer(
    tokens=tokens,
    logp=[place["logprob"] for place in places],
    finish=choice["finish_reason"],
    label=labels.pop() if len(labels) == 1 else None,
    top=top,
    kept=[_kept(laws, request) for laws in top] if truncates(request.law) else None,
  )


def _kept(laws: Mapping[int, float], request: Request) -> Sequence[int]:
  """The ids that truncated sampling kept, as processed log-probs show them."""
  kept = [token for token, logp in laws.items() if logp > _DROPPED]
  return kept if len(kept) <= request.kept_width else ()
