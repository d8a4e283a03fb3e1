"""A byte-level BPE tokenizer of a few merges, and a chat template."""

import tokenizers

from tis_jax.models.tokenizers.bpe import byte_pair_tokenizer

TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def make(splitting, **rest):
  # Every byte, then merges that would glue digits together if nothing kept them apart.
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [("1", "2"), ("12", "3"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
  tokens = SPECIAL + alphabet + ["".join(pair) for pair in merges]
  rest = {"eos_ids": (1,), "pad_id": 1} | rest
  return byte_pair_tokenizer(
    tokens, merges, splitting=splitting, special=SPECIAL, **rest
  )
