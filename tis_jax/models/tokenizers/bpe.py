"""Byte-level BPE tokenizers of published models, on the `tokenizers` library."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

# How a model cuts text before merging, by llama.cpp's name for it; their patterns are
# in the models' own tokenizer.json files. {1,1} and {1,3} digits make one piece.
_LETTERS_AND_DIGITS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS_A_PIECE = {"qwen2": 1, "llama-bpe": 3, "llama3": 3}


class BytePairTokenizer:
  """A published tokenizer behind `encode` and `decode`.

  Args:
    tokenizer: of the `tokenizers` library.
    eos_ids: ids that end a response; the first is what a response should end with.
    pad_id: fills the rest of a row.
    bos: text of the token that chat templates may open with.
    chat_template: Jinja source, or None where the model has none.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    bos: str | None = None,
    chat_template: str | None = None,
  ):
    self.eos_ids = tuple(eos_ids)
    self.eos_id = self.eos_ids[0]
    self.pad_id = pad_id
    self.vocab_size = tokenizer.get_vocab_size()
    self._tokenizer = tokenizer
    self._bos = bos
    self._chat_template = chat_template

  @property
  def has_chat_template(self) -> bool:
    """Whether `chat` can be asked for."""
    return self._chat_template is not None

  def encode(self, text: str) -> list[int]:
    """Ids of the text as it stands; special tokens written out in it count as such."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    """Text of the ids, without special tokens."""
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def chat(self, prompt: str, *, system: str | None = None) -> str:
    """A single-turn prompt as the model's own template renders it.

    Args:
      prompt: what the user says.
      system: replaces the template's own system message, if any.

    Returns:
      Text for `encode`, up to where the assistant begins.

    Raises:
      ValueError: the model has no chat template.
    """
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
      messages.insert(0, {"role": "system", "content": system})
    return self.render(messages)

  def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as the model's own template renders it.

    Args:
      messages: mappings with "role" and "content", in order.

    Returns:
      Text for `encode`, up to where the assistant begins.

    Raises:
      ValueError: the model has no chat template.
    """
    return self._template.render(
      messages=list(messages),
      add_generation_prompt=True,
      bos_token=self._bos or "",
      eos_token=self._tokenizer.id_to_token(self.eos_id),
    )

  @functools.cached_property
  def _template(self) -> Any:
    if self._chat_template is None:
      raise ValueError("this model has no chat template; encode the prompt itself")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The whitespace rules and names that transformers gives a template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(self._chat_template)


def byte_pair_tokenizer(
  tokens: Sequence[str],
  merges: Sequence[tuple[str, str]],
  *,
  splitting: str,
  special: Sequence[str],
  **rest,
) -> BytePairTokenizer:
  """Rebuilds a byte-level BPE tokenizer from its vocabulary and merges.

  Args:
    tokens: the vocabulary in order of id.
    merges: pairs, most urgent first.
    splitting: llama.cpp's name of the cutting before the merges: "smollm" (digits one
      by one, then GPT-2's rules), "gpt-2", "qwen2", "llama-bpe".
    special: tokens matched whole and left out of decoded text.
    **rest: for `BytePairTokenizer`.

  Raises:
    ValueError: an unknown splitting.
  """
  vocabulary = {token: index for index, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges)))
  tokenizer.pre_tokenizer = _splitter(splitting)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(special))
  return BytePairTokenizer(tokenizer, **rest)


def _splitter(name):
  if name in ("gpt-2", "gpt2"):
    return pre_tokenizers.ByteLevel(add_prefix_space=False)
  if name == "smollm":
    return pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
      ]
    )
  if name not in _DIGITS_A_PIECE:
    known = ["gpt-2", "smollm", *_DIGITS_A_PIECE]
    raise ValueError(f"pre-tokenizer {name!r} is not one of {known}")
  pattern = _LETTERS_AND_DIGITS.format(digits=_DIGITS_A_PIECE[name])
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def read_tokenizer(directory: str | Path) -> BytePairTokenizer:
  """Reads `tokenizer.json` and its neighbours from a Hugging Face model directory.

  Ends of text come from `generation_config.json`, where instruction-tuned models list
  all of theirs, else from `tokenizer_config.json`.

  Raises:
    FileNotFoundError: there is no `tokenizer.json`.
    ValueError: no file says which token ends a text.
  """
  directory = Path(directory)
  tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))

  def read(name):
    path = directory / name
    return json.loads(path.read_text()) if path.exists() else {}

  described = read("tokenizer_config.json")

  def token(name) -> Any:
    value = described.get(name)
    return value["content"] if isinstance(value, dict) else value

  eos_ids = read("generation_config.json").get("eos_token_id")
  if eos_ids is None and token("eos_token") is not None:
    eos_ids = tokenizer.token_to_id(token("eos_token"))
  if eos_ids is None:
    raise ValueError(f"{directory} does not say which token ends a text")
  eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
  pad_id = (
    None if token("pad_token") is None else tokenizer.token_to_id(token("pad_token"))
  )
  template = directory / "chat_template.jinja"
  return BytePairTokenizer(
    tokenizer,
    eos_ids=eos_ids,
    pad_id=eos_ids[0] if pad_id is None else pad_id,
    bos=token("bos_token"),
    chat_template=(
      template.read_text() if template.exists() else described.get("chat_template")
    ),
  )
