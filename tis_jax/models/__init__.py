"""A Flax NNX decoder, the params it reads, and their tokenizers."""

from tis_jax.models.cache import KVCache, init_cache
from tis_jax.models.config import DecoderConfig, RopeScaling, SlidingWindow
from tis_jax.models.critic import Critic, critic_graph, critic_params
from tis_jax.models.decoder import Decoder
from tis_jax.models.gguf import write_gguf
from tis_jax.models.hugging_face import write_hugging_face
from tis_jax.models.load import gguf_path, load
from tis_jax.models.lora import (
  Base,
  LoRA,
  abstract_adapter,
  adapt,
  init_adapter,
  merge,
  unflatten_adapter,
)
from tis_jax.models.params import (
  abstract_params,
  decoder_graph,
  flatten,
  init_params,
  unflatten,
)
from tis_jax.models.peft import read_peft, write_peft
from tis_jax.models.precision import QUANTIZED, cast, quantize
from tis_jax.models.sharding import params_sharding
from tis_jax.models.tokenizers import BytePairTokenizer, CharacterTokenizer

__all__ = [
  "QUANTIZED",
  "Base",
  "BytePairTokenizer",
  "CharacterTokenizer",
  "Critic",
  "Decoder",
  "DecoderConfig",
  "KVCache",
  "LoRA",
  "RopeScaling",
  "SlidingWindow",
  "abstract_adapter",
  "abstract_params",
  "adapt",
  "cast",
  "critic_graph",
  "critic_params",
  "decoder_graph",
  "flatten",
  "gguf_path",
  "init_adapter",
  "init_cache",
  "init_params",
  "load",
  "merge",
  "params_sharding",
  "quantize",
  "read_peft",
  "unflatten",
  "unflatten_adapter",
  "write_gguf",
  "write_hugging_face",
  "write_peft",
]
