"""Engines of other people, behind a server: vLLM, llama.cpp, SGLang and their like.

Ids in and out over HTTP, with the standard library; nothing of theirs is imported.
"""

from tis_jax.engines.served.answer import Answer as Answer
from tis_jax.engines.served.answer import Request as Request
from tis_jax.engines.served.completions import Completions as Completions
from tis_jax.engines.served.engine import ServedEngine as ServedEngine
from tis_jax.engines.served.engine import Server as Server
from tis_jax.engines.served.errors import EngineAnswerError as EngineAnswerError
from tis_jax.engines.served.errors import EngineDownError as EngineDownError
from tis_jax.engines.served.errors import EngineError as EngineError
from tis_jax.engines.served.errors import EngineRefusedError as EngineRefusedError
from tis_jax.engines.served.errors import WrongParamsError as WrongParamsError
from tis_jax.engines.served.llama_cpp import LlamaCpp as LlamaCpp
from tis_jax.engines.served.probe import Found as Found
from tis_jax.engines.served.probe import Probe as Probe
from tis_jax.engines.served.sglang import SGLang as SGLang
from tis_jax.engines.served.vllm import VLLM as VLLM
