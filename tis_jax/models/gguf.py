"""GGUF files (llama.cpp): Llama, Qwen2 and Qwen3, read dequantised, and written."""

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx

from tis_jax.models.config import DecoderConfig, RopeScaling
from tis_jax.models.layout import from_published, to_published
from tis_jax.models.tokenizers.bpe import BytePairTokenizer, byte_pair_tokenizer

_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}


def read_gguf(
  path: str | Path, place
) -> tuple[DecoderConfig, nnx.State, BytePairTokenizer]:
  """Reads params, shapes and tokenizer from one GGUF file.

  Args:
    path: the file.
    place: (our name, host array) to the leaf.

  Returns:
    (config, params, tokenizer).

  Raises:
    ValueError: an architecture, tokenizer or tensor that this decoder does not have.
  """
  from gguf import GGUFReader
  from gguf.quants import dequantize

  reader = GGUFReader(path)
  fields = {key: field.contents() for key, field in reader.fields.items()}
  tensors = {_published(tensor.name): tensor for tensor in reader.tensors}
  stretching = tensors.pop("rope_freqs.weight", None)
  config = _config(fields, tied="lm_head.weight" not in tensors)
  if stretching is not None:
    config = _stretched(config, np.asarray(stretching.data))

  def read(name):
    tensor = tensors[name]
    array = dequantize(tensor.data, tensor.tensor_type)
    permuted = name.endswith(("q_proj.weight", "k_proj.weight"))
    if permuted and fields["general.architecture"] == "llama":
      # Stored so that the two halves of a rotary pair lie next to each other.
      pairs = array.reshape(-1, config.head_dim // 2, 2, array.shape[-1])
      array = pairs.swapaxes(1, 2).reshape(array.shape)
    return array

  params = from_published(config, tensors, read, place)
  return config, params, _tokenizer(fields)


def write_gguf(
  path: str | Path,
  template: str | Path,
  config: DecoderConfig,
  params: nnx.State,
  kind: str,
) -> None:
  """Writes a GGUF file with another file's tokenizer and metadata, and these params.

  Args:
    path: of the new file.
    template: a GGUF file of the same model.
    config: the decoder's.
    params: arrays, in float.
    kind: of the matrices: "F32", "BF16", "Q8_0", "Q4_1", … Norms and biases are fp32.

  Raises:
    ValueError: the template is another model.
  """
  from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
  from gguf.quants import quantize

  reader = GGUFReader(template)
  tensors = to_published(config, params)
  names = {tensor.name: _published(tensor.name) for tensor in reader.tensors}
  names.pop("rope_freqs.weight", None)
  if set(names.values()) != tensors.keys():
    odd = sorted(tensors.keys() ^ set(names.values()))
    raise ValueError(f"{template} is another model: it differs in {', '.join(odd[:3])}")
  family = reader.fields["general.architecture"].contents()
  writer = GGUFWriter(path, family)
  own = {"general.architecture", "general.quantization_version", "general.file_type"}
  for key, field in reader.fields.items():
    if not key.startswith("GGUF.") and key not in own:
      is_array = field.types[0] == GGUFValueType.ARRAY
      inner = field.types[-1] if is_array else None
      writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
  wanted = GGMLQuantizationType[kind]
  for name, published in names.items():
    array = np.asarray(tensors[published], np.float32)
    if published.endswith(("q_proj.weight", "k_proj.weight")) and family == "llama":
      halves = array.reshape(-1, 2, config.head_dim // 2, array.shape[-1])
      array = halves.swapaxes(1, 2).reshape(array.shape)
    matrix = wanted if array.ndim > 1 else GGMLQuantizationType.F32
    data = quantize(np.ascontiguousarray(array), matrix)
    writer.add_tensor(name, data, raw_dtype=matrix)
  if stretching := [t for t in reader.tensors if t.name == "rope_freqs.weight"]:
    writer.add_tensor("rope_freqs.weight", np.array(stretching[0].data))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _published(name):
  """Hugging Face's name of a tensor: "blk.3.attn_q.weight" is layer 3's q_proj."""
  stem, _, kind = name.rpartition(".")
  if stem.startswith("blk."):
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{_NAMES.get(part, part)}.{kind}"
  return f"{_NAMES.get(stem, stem)}.{kind}"


def _config(fields, tied):
  family = fields["general.architecture"]
  if family not in ("llama", "qwen2", "qwen3"):
    raise ValueError(f"architecture {family!r} is not one of llama, qwen2, qwen3")

  def field(name, default=None):
    return fields.get(f"{family}.{name}", default)

  if (kind := field("rope.scaling.type", "none")) != "none":
    raise ValueError(f"rope scaling {kind!r} is not supported")
  heads, width = field("attention.head_count"), field("embedding_length")
  return DecoderConfig(
    vocab_size=len(fields["tokenizer.ggml.tokens"]),
    hidden_size=width,
    intermediate_size=field("feed_forward_length"),
    num_layers=field("block_count"),
    num_heads=heads,
    num_kv_heads=field("attention.head_count_kv", heads),
    head_dim=field("attention.key_length", width // heads),
    rope_theta=float(field("rope.freq_base", 10_000.0)),
    rms_norm_eps=float(field("attention.layer_norm_rms_epsilon")),
    tie_embeddings=tied,
    attention_bias=family == "qwen2",
    qk_norm=family == "qwen3",
  )


def _stretched(config, divisors):
  """Llama 3 files hold one divisor a frequency; the largest is its factor.

  Raises:
    ValueError: the divisors are not those of Llama 3's constants.
  """
  scaling = RopeScaling(float(divisors.max()), 1.0, 4.0, 8192)
  half = config.head_dim // 2
  turns = config.rope_theta ** (-np.arange(half) / half) * 8192 / (2 * np.pi)
  kept = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
  if not np.allclose(1 / (kept + (1 - kept) / scaling.factor), divisors, rtol=1e-3):
    raise ValueError("rope_freqs.weight is not Llama 3's stretching")
  return dataclasses.replace(config, rope_scaling=scaling)


def _tokenizer(fields):
  def field(name, default=None):
    return fields.get(f"tokenizer.ggml.{name}", default)

  if (model := field("model")) != "gpt2":
    raise ValueError(f"tokenizer {model!r} is not byte-level BPE ('gpt2')")
  tokens, kinds = field("tokens"), field("token_type")
  eos_id = field("eos_token_id")
  # Types 3 (control) and 4 (user defined) are matched whole, before any splitting.
  special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (3, 4)]
  bos_id = field("bos_token_id")
  return byte_pair_tokenizer(
    tokens,
    [tuple(merge.split(" ")) for merge in field("merges")],
    splitting=field("pre", "default"),
    special=special,
    eos_ids=(eos_id,),
    pad_id=field("padding_token_id", eos_id),
    bos=None if bos_id is None else tokens[bos_id],
    chat_template=fields.get("tokenizer.chat_template"),
  )
