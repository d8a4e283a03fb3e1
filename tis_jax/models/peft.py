"""Adapters as Hugging Face PEFT keeps them: adapter_config.json and safetensors.

PEFT's matrices are [rank, inputs] and [outputs, rank], one a layer, with heads merged;
ours are [inputs, rank] and [rank, outputs], with heads apart and layers stacked.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from tis_jax.models.config import DecoderConfig
from tis_jax.models.layout import published_names
from tis_jax.models.lora import LoRA, abstract_adapter, unflatten_adapter
from tis_jax.models.params import flatten
from tis_jax.models.precision import CONTRACTED

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
# What would change the arithmetic, and what it has to be.
_PLAIN = {
  "peft_type": "LORA",
  "use_dora": False,
  "bias": "none",
  "fan_in_fan_out": False,
  "rank_pattern": {},
  "alpha_pattern": {},
  "modules_to_save": None,
  "layers_to_transform": None,
}


def write_peft(
  directory: str | Path,
  config: DecoderConfig,
  adapter: nnx.State,
  lora: LoRA,
  *,
  base_model: str = "",
) -> None:
  """Writes an adapter so that PEFT, `transformers` and vLLM load it.

  Args:
    directory: made if need be.
    config: the decoder's.
    adapter: from `init_adapter`.
    lora: which adapters it has.
    base_model: name or directory of the params that it stands beside.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for name, leaf in flatten(adapter).items():
    matrix, _, half = name.rpartition("/")
    for theirs, layer in zip(_names(config, name), np.asarray(leaf), strict=True):
      inputs = 1 if half == "lora_b" else CONTRACTED[matrix.rpartition("/")[2]]
      flat = layer.reshape(math.prod(layer.shape[:inputs]), -1)
      tensors[theirs] = np.ascontiguousarray(flat.T)
  described = _PLAIN | {
    "base_model_name_or_path": base_model,
    "inference_mode": True,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "r": lora.rank,
    "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    "task_type": "CAUSAL_LM",
    "use_rslora": False,
  }
  (directory / _CONFIG).write_text(json.dumps(described, indent=2) + "\n")
  save_file(tensors, directory / _TENSORS, metadata={"format": "pt"})


def read_peft(directory: str | Path, config: DecoderConfig) -> tuple[LoRA, nnx.State]:
  """Reads an adapter that PEFT, or `write_peft`, has written.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    config: of the decoder that it is to stand beside.

  Returns:
    (which adapters there are, the fp32 adapter). A scale by the root of the rank
    (`use_rslora`) becomes the alpha that gives it.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: it is no plain LoRA adapter, or one for another decoder.
  """
  directory = Path(directory)
  described = json.loads((directory / _CONFIG).read_text())
  for option, plain in _PLAIN.items():
    if (found := described.get(option, plain)) != plain and (found or plain):
      raise ValueError(f"{directory}: {option}={found!r} is not supported")
  tensors = load_file(directory / _TENSORS)
  lora = _described(described, config, tensors)
  leaves, flat = flatten(abstract_adapter(config, lora)), {}
  for name, leaf in leaves.items():
    theirs = _names(config, name)
    if missing := [one for one in theirs if one not in tensors]:
      raise ValueError(f"{directory} lacks {missing[0]}")
    try:
      layers = [tensors.pop(one).T.reshape(leaf.shape[1:]) for one in theirs]
    except ValueError as error:
      raise ValueError(f"{theirs[0]} does not fit {name}: {error}") from error
    flat[name] = jnp.asarray(np.stack(layers), jnp.float32)
  if tensors:
    raise ValueError(f"{directory} has {min(tensors)}, which this decoder has not")
  return lora, unflatten_adapter(config, lora, flat)


def _described(
  described: Mapping[str, Any], config: DecoderConfig, tensors: Mapping
) -> LoRA:
  rank, alpha = described["r"], float(described["lora_alpha"])
  if described.get("use_rslora"):
    alpha *= rank**0.5
  every = flatten(abstract_adapter(config, LoRA(rank=rank)))
  # The files say which there are; target_modules may be a pattern.
  there = {name.split("/")[-2] for name in every if _names(config, name)[0] in tensors}
  targets = tuple(target for target in CONTRACTED if target in there)
  return LoRA(rank=rank, alpha=alpha, targets=targets)


def _names(config: DecoderConfig, name: str) -> list[str]:
  """PEFT's names of an adapter's layers."""
  matrix, _, half = name.rpartition("/")
  theirs = "lora_A" if half == "lora_a" else "lora_B"
  stems = [x.removesuffix(".weight") for x in published_names(config, matrix)]
  return [f"base_model.model.{stem}.{theirs}.weight" for stem in stems]
