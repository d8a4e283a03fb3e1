"""Tokenizers: digits one by one, specials whole, text that comes back."""

import json

import pytest
from small_tokenizer import TEMPLATE, make

from tis_jax import models
from tis_jax.models.tokenizers.bpe import read_tokenizer


def pieces(tokenizer, text):
  return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("splitting", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
@pytest.mark.parametrize("text", ["48/2 = 24\n\n  the 123", "héllo, 数学 🙂 don't"])
def test_text_comes_back(splitting, text):
  tokenizer = make(splitting)
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_cut_as_the_model_was_trained():
  assert pieces(make("smollm"), "1234") == ["1", "2", "3", "4"]
  assert pieces(make("qwen2"), "1234") == ["1", "2", "3", "4"]
  assert pieces(make("llama-bpe"), "1234") == ["123", "4"]
  assert pieces(make("smollm"), " the") == [" the"]


def test_special_tokens_are_whole_and_leave_no_text():
  tokenizer = make("smollm")
  ids = tokenizer.encode("<|im_start|>the<|im_end|>")
  assert ids[0] == 0 and ids[-1] == tokenizer.eos_id == 1
  assert tokenizer.decode(ids) == "the"


def test_chat_follows_the_models_template():
  tokenizer = make("smollm", chat_template=TEMPLATE)
  assert tokenizer.chat("2+2?", system="Be brief.") == (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
  )
  with pytest.raises(ValueError, match="no chat template"):
    make("smollm").chat("2+2?")


def test_an_unknown_splitting_is_refused():
  with pytest.raises(ValueError, match="'falcon' is not one of"):
    make("falcon")


def test_a_model_directory_says_how_texts_end(tmp_path):
  make("qwen2")._tokenizer.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(ValueError, match="which token ends a text"):
    read_tokenizer(tmp_path)

  described = {"eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
  tokenizer = read_tokenizer(tmp_path)
  assert tokenizer.eos_ids == (1,) and tokenizer.pad_id == 1
  assert tokenizer.chat("hi").startswith("<|im_start|>user")

  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')
  described["pad_token"] = "<|im_start|>"
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
  tokenizer = read_tokenizer(tmp_path)
  assert tokenizer.eos_ids == (1, 0) and tokenizer.pad_id == 0


def test_characters_refuse_what_they_do_not_have():
  tokenizer = models.CharacterTokenizer("0123456789+-*/=")
  with pytest.raises(ValueError, match=r"\['x'\]"):
    tokenizer.encode("2x=")
  with pytest.raises(ValueError, match="repeats"):
    models.CharacterTokenizer("aa")
  assert tokenizer.vocab_size == 17
