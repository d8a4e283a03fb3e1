"""Messages as ids: each is encoded once, and what was sampled is never encoded at all.

Text that was decoded and encoded again need not be the ids that were sampled: a
tokenizer has one way to write "ab", and a policy may have sampled "a" and "b". So only
what is new is encoded, and put behind the ids that are there.
"""

from collections.abc import Sequence
from typing import Any

from tis_jax.tasks.conversation import Message

# What the assistant said, where only the text behind it is wanted.
_SAID = "0said0"


def opening_ids(tokenizer, messages: Sequence[Message], *, chat: bool) -> list[int]:
  """What a conversation opens with, up to where the policy's first turn begins.

  Args:
    tokenizer: of the model; `chat` needs its `render`.
    messages: in order.
    chat: render them by the model's chat template, text being a user's message; else
      all are text, and follow each other as they stand.

  Raises:
    TypeError: a mapping without `chat`.
    ValueError: the model has no chat template, or text that it cannot encode.

  >>> from tis_jax.models import CharacterTokenizer
  >>> opening_ids(CharacterTokenizer("0123456789+="), ["1+", "2="], chat=False)
  [3, 12, 4, 13]
  """
  if not chat:
    return tokenizer.encode(_text(messages))
  return tokenizer.encode(tokenizer.render(_mappings(messages)))


def reply_ids(
  tokenizer, messages: Sequence[Message], *, chat: bool, ended: bool
) -> list[int]:
  """What is said between two turns: from behind one to where the next begins.

  By a chat template it is what the template puts behind something that the assistant
  said, with these messages after it. The end of the assistant's turn is left out where
  the policy has sampled it.

  Args:
    tokenizer: see `opening_ids`.
    messages: see `opening_ids`.
    chat: see `opening_ids`.
    ended: whether the turn ended itself, by one of `tokenizer.eos_ids`.

  Raises:
    TypeError: see `opening_ids`.
    ValueError: see `opening_ids`; or a template that does not show what was said.

  >>> from tis_jax.models import CharacterTokenizer
  >>> reply_ids(CharacterTokenizer("0123456789+="), ["24"], chat=False, ended=True)
  [4, 6]
  """
  if not chat:
    return tokenizer.encode(_text(messages))
  before = [_user("."), {"role": "assistant", "content": _SAID}]
  rendered = tokenizer.render([*before, *_mappings(messages)])
  _, said, behind = rendered.partition(_SAID)
  if not said:
    raise ValueError(
      "the chat template does not show what the assistant said, so what it puts behind "
      "it cannot be told; take a task with chat=False"
    )
  ids = tokenizer.encode(behind)
  return ids[1:] if ended and ids and ids[0] in tokenizer.eos_ids else ids


def _text(messages: Sequence[Message]) -> str:
  for message in messages:
    if not isinstance(message, str):
      raise TypeError(
        f"{message!r} has a role, which text without a chat template cannot say; give "
        "text, or set the task's chat=True"
      )
  return "".join(str(message) for message in messages)


def _mappings(messages: Sequence[Message]) -> list[dict[str, Any]]:
  return [_user(m) if isinstance(m, str) else dict(m) for m in messages]


def _user(content: str) -> dict[str, Any]:
  return {"role": "user", "content": content}
