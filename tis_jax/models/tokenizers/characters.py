"""One token a character, for policies small enough to train on a laptop."""

from collections.abc import Iterable
from typing import SupportsInt


class CharacterTokenizer:
  """Maps each character of a given alphabet to an id after padding and end of text.

  Args:
    alphabet: the characters, without repeats; the k-th has id k + 2.

  Example:
    >>> tokenizer = CharacterTokenizer("0123456789+-*/=")
    >>> tokenizer.encode("48/2=")
    [6, 10, 15, 4, 16]
    >>> tokenizer.decode([4, 6, tokenizer.eos_id, tokenizer.pad_id])
    '24'
  """

  pad_id = 0
  eos_id = 1
  eos_ids = (1,)

  def __init__(self, alphabet: str):
    if len(set(alphabet)) != len(alphabet):
      raise ValueError(f"the alphabet {alphabet!r} repeats a character")
    self.alphabet = alphabet
    self.vocab_size = len(alphabet) + 2
    self._ids = {character: index + 2 for index, character in enumerate(alphabet)}

  def encode(self, text: str) -> list[int]:
    """The ids of the characters, without an end of text.

    Raises:
      ValueError: a character is not in the alphabet.
    """
    unknown = sorted(set(text) - self._ids.keys())
    if unknown:
      raise ValueError(f"{text!r} holds {unknown}, not in {self.alphabet!r}")
    return [self._ids[character] for character in text]

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    """The characters of the ids; padding and end of text give nothing."""
    return "".join(self.alphabet[int(i) - 2] for i in ids if int(i) >= 2)
