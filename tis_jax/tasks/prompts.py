"""A task's prompts as padded token arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tis_jax.tasks.task import Example


class Prompts(NamedTuple):
  """Prompts that fit.

  Attributes:
    tokens: int32 `[N, P]`, left-padded.
    mask: bool `[N, P]`.
    examples: the N examples they are of.
  """

  tokens: np.ndarray
  mask: np.ndarray
  examples: Sequence[Example]


def encode_prompts(
  tokenizer, examples: Sequence[Example], max_tokens: int, *, chat: bool
) -> Prompts:
  """Encodes the prompts of at most `max_tokens` tokens; leaves the others out.

  Args:
    tokenizer: of the model.
    examples: of a task's split.
    max_tokens: P.
    chat: wrap each prompt in the model's chat template.

  Raises:
    ValueError: no prompt fits.

  >>> from tis_jax.models import CharacterTokenizer
  >>> found = encode_prompts(CharacterTokenizer("0123456789+="),
  ...                        [Example(0, "1+2=", "3"), Example(1, "100+200=", "300")],
  ...                        max_tokens=5, chat=False)
  >>> found.tokens.tolist(), [example.prompt for example in found.examples]
  ([[0, 3, 12, 4, 13]], ['1+2='])
  """
  render = tokenizer.chat if chat else (lambda prompt: prompt)
  encoded = [tokenizer.encode(render(example.prompt)) for example in examples]
  fitting = [i for i, ids in enumerate(encoded) if len(ids) <= max_tokens]
  if not fitting:
    shortest = min(map(len, encoded), default=0)
    raise ValueError(
      f"none of {len(encoded)} prompts fits in {max_tokens} tokens; the shortest has "
      f"{shortest}"
    )
  tokens = np.full((len(fitting), max_tokens), tokenizer.pad_id, np.int32)
  mask = np.zeros((len(fitting), max_tokens), bool)
  for row, index in enumerate(fitting):
    ids = encoded[index]
    tokens[row, max_tokens - len(ids) :] = ids
    mask[row, max_tokens - len(ids) :] = True
  return Prompts(tokens, mask, [examples[i] for i in fitting])
