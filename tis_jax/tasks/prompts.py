"""A task's prompts as padded token arrays."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tis_jax.tasks.task import Example, TaskError

_SHOWN = 3


class Prompts(NamedTuple):
  """Prompts that fit.

  Attributes:
    tokens: int32 `[N, P]`, left-padded.
    mask: bool `[N, P]`.
    examples: the N examples they are of.
    notes: sentences on those that were left out, and on how the others are wrapped.
  """

  tokens: np.ndarray
  mask: np.ndarray
  examples: Sequence[Example]
  notes: tuple[str, ...] = ()


def encode_prompts(
  tokenizer, examples: Sequence[Example], max_tokens: int, *, chat: bool | None
) -> Prompts:
  """Encodes the prompts of at most `max_tokens` tokens; leaves the others out.

  Left out as well, each with a note, are empty prompts and those that the tokenizer
  cannot write.

  Args:
    tokenizer: of the model.
    examples: of a task's split.
    max_tokens: P.
    chat: wrap each prompt in the model's chat template. None does so where there is
      one.

  Raises:
    ValueError: no prompt is left; says why.
    TaskError: `chat` is True, and there is no template.

  >>> from tis_jax.models import CharacterTokenizer
  >>> found = encode_prompts(CharacterTokenizer("0123456789+="),
  ...                        [Example(0, "1+2=", "3"), Example(1, "100+200=", "300")],
  ...                        max_tokens=5, chat=False)
  >>> found.tokens.tolist(), [example.prompt for example in found.examples]
  ([[0, 3, 12, 4, 13]], ['1+2='])
  >>> found.notes
  ('1 of 2 prompts left out: example 1 has 8 tokens, more than 5',)
  """
  render, notes = _renderer(tokenizer, chat)
  fitting: list[tuple[list[int], Example]] = []
  left_out, shortest = [], 0
  for example in examples:
    ids, why = _encoded(tokenizer, render, example.prompt)
    if len(ids) > max_tokens:
      shortest = min(shortest or len(ids), len(ids))
      why = f"{len(ids)} tokens, more than {max_tokens}"
    if why:
      left_out.append(f"example {example.id} has {why}")
    else:
      fitting.append((ids, example))
  if not fitting:
    least = f"; the shortest has {shortest}" if shortest else ""
    first = f" ({left_out[0]})" if left_out and not shortest else ""
    raise ValueError(
      f"none of {len(examples)} prompts fits in {max_tokens} tokens{least}{first}"
    )
  if left_out:
    shown = "; ".join(left_out[:_SHOWN]) + ("; ..." if left_out[_SHOWN:] else "")
    notes += (f"{len(left_out)} of {len(examples)} prompts left out: {shown}",)
  tokens = np.full((len(fitting), max_tokens), tokenizer.pad_id, np.int32)
  mask = np.zeros((len(fitting), max_tokens), bool)
  for row, (ids, _) in enumerate(fitting):
    tokens[row, max_tokens - len(ids) :] = ids
    mask[row, max_tokens - len(ids) :] = True
  return Prompts(tokens, mask, [example for _, example in fitting], notes)


def wraps(tokenizer, chat: bool | None) -> bool:
  """Whether prompts are wrapped in a chat template; None where there is one."""
  return getattr(tokenizer, "has_chat_template", False) if chat is None else chat


def _renderer(
  tokenizer, chat: bool | None
) -> tuple[Callable[[str], str], tuple[str, ...]]:
  if chat and not wraps(tokenizer, None):
    raise TaskError(
      "the task's prompts are to be wrapped in a chat template (chat=True), and the "
      "model's tokenizer has none: set chat to None or False, in data.options or where "
      "the task is made"
    )
  if wraps(tokenizer, chat):
    return tokenizer.chat, ()
  plain = "the tokenizer has no chat template: prompts are text to continue"
  return (lambda prompt: prompt), (plain,) if chat is None else ()


def _encoded(tokenizer, render, prompt: str) -> tuple[list[int], str]:
  """The ids of a prompt, or why it has none."""
  if not prompt.strip():
    return [], "an empty prompt"
  try:
    ids = tokenizer.encode(render(prompt))
  except ValueError as error:
    return [], f"a prompt that cannot be encoded: {error}"
  return ids, "" if ids else "a prompt of no tokens"
