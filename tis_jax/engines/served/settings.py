"""How engines of other people are found or started."""

import dataclasses

from tis_jax.numerics.checks import check_number


@dataclasses.dataclass(frozen=True)
class VLLMSettings:
  """vLLM, started in an environment of its own or found.

  Attributes:
    python: interpreter of an environment that has vLLM (`make vllm` builds
      .venv-vllm/bin/python); empty to find the server at `url`.
    url: of a server that runs already, as
      `tis_jax.engines.served.vllm.command` starts it.
    folder: where params are handed over; both sides must see it. Empty for shared
      memory.
    arguments: more of the server's command line, separated by commas.
    start_seconds: that its start may take; on a CPU it compiles for minutes in bf16.
    probe: prompts that are asked after every update, to see what the server holds; 0
      trusts what it says.
  """

  python: str = ""
  url: str = ""
  folder: str = ""
  arguments: tuple[str, ...] = ()
  start_seconds: float = 900.0
  probe: int = 4

  def __post_init__(self):
    check_number("probe", self.probe, at_least=0)


@dataclasses.dataclass(frozen=True)
class LlamaCppSettings:
  """llama.cpp, started again for every version of the params.

  Attributes:
    python: interpreter of an environment that has xllamacpp (`make llama` builds
      .venv-llama/bin/python), or a llama-server program.
    url: of a llama-server that runs already. It cannot take new params.
    folder: where GGUF files are written; empty for shared memory.
    threads: of the server; 0 for as many as there are cores. They wait for each other
      in a loop, so beside other work one is faster than two.
    start_seconds: that its start may take.
    probe: prompts that are asked after every update, to see what the server holds; 0
      trusts it.
  """

  python: str = ""
  url: str = ""
  folder: str = ""
  threads: int = 0
  start_seconds: float = 120.0
  probe: int = 4

  def __post_init__(self):
    check_number("probe", self.probe, at_least=0)


@dataclasses.dataclass(frozen=True)
class SGLangSettings:
  """SGLang, found at a URL.

  Attributes:
    url: of the server.
    folder: where params are handed over; both sides must see it. Empty for shared
      memory.
    probe: prompts that are asked after every update, to see what the server holds; 0
      trusts what it says.
  """

  url: str = ""
  folder: str = ""
  probe: int = 4

  def __post_init__(self):
    check_number("probe", self.probe, at_least=0)
