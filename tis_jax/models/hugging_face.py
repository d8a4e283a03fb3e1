"""Directories of Hugging Face safetensors: Llama, Qwen2/2.5, Qwen3, Qwen3-MoE and the
text models of Gemma 3."""

import json
from pathlib import Path
from typing import Any

from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from tis_jax.models.config import DecoderConfig, RopeScaling
from tis_jax.models.gemma import is_gemma, read_gemma, write_gemma
from tis_jax.models.layout import from_published, to_published

_FAMILIES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "qwen3_moe": "Qwen3MoeForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
}


def read_hugging_face(directory: str | Path, place) -> tuple[DecoderConfig, nnx.State]:
  """Reads `config.json` and the safetensors beside it, in one file or in shards.

  Args:
    directory: as `save_pretrained` or the hub lays it out.
    place: (our name, host array) to the leaf.

  Returns:
    (config, parameters).

  Raises:
    FileNotFoundError: a file of the model is not there.
    ValueError: the model has a part that this decoder lacks.
  """
  directory = Path(directory)
  config = config_from_hugging_face(json.loads((directory / "config.json").read_text()))
  index = directory / "model.safetensors.index.json"
  if index.exists():
    shards = json.loads(index.read_text())["weight_map"]
  else:
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
      shards = dict.fromkeys(file.keys(), "model.safetensors")
  files = {
    name: safe_open(directory / name, framework="numpy")
    for name in sorted(set(shards.values()))
  }

  def read(name):
    return files[shards[name]].get_tensor(name)

  return config, from_published(config, shards, read, place)


def write_hugging_face(
  directory: str | Path, config: DecoderConfig, params: nnx.State
) -> None:
  """Writes `config.json` and `model.safetensors`, in the parameters' dtype.

  Args:
    directory: made if need be.
    config: the decoder's.
    params: arrays; not int8.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tensors = to_published(config, params)
  described = config_to_hugging_face(config)
  described["dtype"] = str(tensors["model.norm.weight"].dtype)
  (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n")
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def config_from_hugging_face(described: dict) -> DecoderConfig:
  """A `DecoderConfig` from the contents of a `config.json`.

  Raises:
    ValueError: another family, or an option that this decoder does not compute.
  """
  family = described.get("model_type")
  if family not in _FAMILIES:
    raise ValueError(f"model_type {family!r} is not one of {sorted(_FAMILIES)}")
  refused = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "mlp_bias": False,
    "attention_bias": family == "qwen2",
    # Layers of a mixture that have one MLP for all.
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  }
  for option, computed in refused.items():
    asked = described.get(option, computed)
    if asked != computed and (asked or computed):
      raise ValueError(f"{family} with {option}={asked!r} is not supported")
  heads = described["num_attention_heads"]
  default_width = 128 if family == "qwen3" else described["hidden_size"] // heads
  width, further = described["intermediate_size"], {}
  if family == "gemma3_text":
    further = read_gemma(described)
  if family == "qwen3_moe":
    width = described["moe_intermediate_size"]
    further = {
      # transformers 5 has a name for all families.
      "num_experts": described.get("num_local_experts") or described["num_experts"],
      "experts_per_token": described["num_experts_per_tok"],
      "normalize_experts": described.get("norm_topk_prob", False),
    }
  fields: dict[str, Any] = {
    "vocab_size": described["vocab_size"],
    "hidden_size": described["hidden_size"],
    "intermediate_size": width,
    "num_layers": described["num_hidden_layers"],
    "num_heads": heads,
    "num_kv_heads": described.get("num_key_value_heads") or heads,
    "head_dim": described.get("head_dim") or default_width,
    "rms_norm_eps": described.get("rms_norm_eps", 1e-6),
    "tie_embeddings": described.get("tie_word_embeddings", False),
    "attention_bias": family == "qwen2",
    "qk_norm": family in ("qwen3", "qwen3_moe"),
  }
  return DecoderConfig(**fields | further | _rope(described))


def _rope(described) -> dict[str, Any]:
  # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
  rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
  # Gemma has parameters for each kind of layer; `read_gemma` takes the other ones.
  rope = rope.get("full_attention", rope)
  default = 1e6 if described["model_type"] == "gemma3_text" else 10_000.0
  theta = rope.get("rope_theta") or described.get("rope_theta") or default
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind == "default":
    return {"rope_theta": float(theta), "rope_scaling": None}
  if kind != "llama3":
    raise ValueError(f"rope_type {kind!r} is not supported; 'default' and 'llama3' are")
  scaling = RopeScaling(
    factor=rope["factor"],
    low_frequency_factor=rope["low_freq_factor"],
    high_frequency_factor=rope["high_freq_factor"],
    original_positions=rope["original_max_position_embeddings"],
  )
  return {"rope_theta": float(theta), "rope_scaling": scaling}


def config_to_hugging_face(config: DecoderConfig) -> dict:
  """The contents of a `config.json` for a decoder, readable by `transformers` 4 and 5.

  Raises:
    ValueError: no family has both query-key norms and attention biases, or experts
      without such norms.
  """
  if config.qk_norm and config.attention_bias:
    raise ValueError("no published family has both qk_norm and attention_bias")
  if config.num_experts and not config.qk_norm:
    raise ValueError("no published family has experts and no qk_norm")
  family = "llama"
  if config.qk_norm or config.attention_bias:
    family = "qwen3" if config.qk_norm else "qwen2"
  if config.num_experts:
    family = "qwen3_moe"
  gemma = is_gemma(config)
  if gemma:
    family = "gemma3_text"
  rope = {"rope_type": "default"}
  if (scaling := config.rope_scaling) is not None:
    rope = {
      "rope_type": "llama3",
      "factor": scaling.factor,
      "low_freq_factor": scaling.low_frequency_factor,
      "high_freq_factor": scaling.high_frequency_factor,
      "original_max_position_embeddings": scaling.original_positions,
    }
  return {
    "architectures": [_FAMILIES[family]],
    "model_type": family,
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": config.rms_norm_eps,
    "rope_theta": config.rope_theta,
    "rope_scaling": None if config.rope_scaling is None else rope,
    "rope_parameters": {"rope_theta": config.rope_theta, **rope},
    "tie_word_embeddings": config.tie_embeddings,
    # Qwen2 has its biases always, and no such option.
    **({} if family == "qwen2" else {"attention_bias": False}),
    **(_mixture(config) if config.num_experts else {}),
    **(write_gemma(config) if gemma else {}),
  }


def _mixture(config: DecoderConfig) -> dict:
  return {
    "num_experts": config.num_experts,
    "num_experts_per_tok": config.experts_per_token,
    "norm_topk_prob": config.normalize_experts,
    "moe_intermediate_size": config.intermediate_size,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  }
