"""The arithmetic policy's file: fp16 parameters, shapes and alphabet in its header.

`experiments/pretrain.py` makes it; `write_arithmetic` and `read_arithmetic` are the one
place that knows its format.
"""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from tis_jax.models.config import DecoderConfig
from tis_jax.models.params import decoder_graph, flatten, unflatten
from tis_jax.models.tokenizers import CharacterTokenizer


def write_arithmetic(
  path: str | Path,
  config: DecoderConfig,
  params: nnx.State,
  tokenizer: CharacterTokenizer,
) -> None:
  """Writes a small policy as one safetensors file, rounding its parameters to fp16."""
  flat = {name: np.asarray(x, np.float16) for name, x in flatten(params).items()}
  header = {
    "config": json.dumps(dataclasses.asdict(config)),
    "alphabet": tokenizer.alphabet,
  }
  save_file(flat, path, metadata=header)


def read_arithmetic(
  path: str | Path | None = None,
) -> tuple[DecoderConfig, nnx.State, CharacterTokenizer]:
  """Reads what `write_arithmetic` wrote; by default the policy in the package.

  Args:
    path: the file; None is the one that ships.

  Returns:
    (config, fp32 parameters, tokenizer).

  >>> config, params, tokenizer = read_arithmetic()
  >>> config.num_layers, config.num_parameters < 1_000_000, tokenizer.alphabet
  (4, True, '0123456789+-*/=')
  """
  if path is None:
    path = Path(__file__).with_name("arithmetic.safetensors")
  with safe_open(path, framework="numpy") as file:
    header, names = file.metadata(), file.keys()
    flat = {name: jnp.asarray(file.get_tensor(name), jnp.float32) for name in names}
  config = DecoderConfig(**json.loads(header["config"]))
  params = unflatten(decoder_graph(config), flat)
  return config, params, CharacterTokenizer(header["alphabet"])
