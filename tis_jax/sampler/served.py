"""The engines behind servers that a run asks for, from its settings."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import models
from tis_jax.engines.served import VLLM, LlamaCpp, Probe, ServedEngine, Server, SGLang
from tis_jax.models import DecoderConfig
from tis_jax.models.params import config_of
from tis_jax.sampler.settings import Assignment
from tis_jax.store import default_url
from tis_jax.tasks import Environment

# Params, written twice while a server takes the new ones.
_BYTES_A_PARAM = 8


def served_engine(
  assignment: Assignment,
  graph: nnx.GraphDef,
  environment: Environment,
  name: str,
  asked: dict[str, Any],
  base: models.Base | None = None,
) -> ServedEngine:
  """The engine of `assignment.sampler.engine`.

  Args:
    assignment: from the store.
    graph: of the decoder.
    environment: whose prompts a probe takes.
    name: of the run and the sampler.
    asked: `max_new_tokens`, `eos_ids`, `pad_id`, `kept_width` and `top_logprobs`.
    base: of the run's adapters, which the server is given merged into it.

  Raises:
    EngineError: neither a program nor a URL is given.
  """
  settings, config = assignment.sampler, config_of(graph)
  own = getattr(settings, settings.engine)
  folder = Path(own.folder) if own.folder else _shared_folder(config.num_parameters)
  folder = folder / (name or f"process-{os.getpid()}")
  # A later turn's prompt has the conversation so far.
  said = settings.max_new_tokens if environment.turns is not None else 0
  server = _server(assignment, graph, folder, asked, said)
  prompts = environment.prompts
  probe = None
  if own.probe:
    probe = Probe(
      graph,
      [prompts.tokens[i][prompts.mask[i]].tolist() for i in range(own.probe)],
      law=settings.sampling,
      dtype=server.dtype,
      vocab_size=config.vocab_size,
      stop_ids=asked["eos_ids"],
    )
  return ServedEngine(
    server,
    settings.sampling,
    vocab_size=config.vocab_size,
    probe=probe,
    whole=None if base is None else functools.partial(merged, config, base),
    say=functools.partial(print, flush=True),
    **asked,
  )


def merged(
  config: DecoderConfig, base: models.Base, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Params by name, from an adapter's arrays: its sum with the base, in fp32."""
  halves = {name: jnp.asarray(array) for name, array in arrays.items()}
  adapter = models.unflatten_adapter(config, base.lora, halves)
  return jax.device_get(models.flatten(models.merge(base.params, adapter, base.lora)))


def _server(assignment: Assignment, graph, folder: Path, asked, said: int) -> Server:
  settings = assignment.sampler
  # A probe's answers may be longer than the run's.
  longest = assignment.max_prompt_tokens + said + max(asked["max_new_tokens"], 16)
  if settings.engine == "vllm":
    return VLLM(
      graph,
      dtype=settings.precision,
      folder=folder,
      python=settings.vllm.python,
      url=settings.vllm.url,
      arguments=settings.vllm.arguments,
      max_length=longest,
      max_logprobs=max(20, asked["kept_width"] + 1, asked["top_logprobs"]),
      start_seconds=settings.vllm.start_seconds,
    )
  if settings.engine == "sglang":
    return SGLang(
      graph, url=settings.sglang.url, dtype=settings.precision, folder=folder
    )
  return LlamaCpp(
    graph,
    models.gguf_path(assignment.model),
    precision=settings.precision,
    folder=folder,
    python=settings.llama_cpp.python,
    url=settings.llama_cpp.url,
    slots=min(settings.prompts_per_record, 16),
    max_length=longest,
    threads=settings.llama_cpp.threads,
    start_seconds=settings.llama_cpp.start_seconds,
  )


def _shared_folder(params: int) -> Path:
  url, _ = default_url("engines", needed_bytes=_BYTES_A_PARAM * params)
  return Path(unquote(urlsplit(url).path))
