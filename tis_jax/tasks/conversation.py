"""Environments with turns: what one is, and how long it may talk."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple, Protocol

Message = str | Mapping[str, str]
"""Text as it stands, or `{"role": ..., "content": ...}` for a chat template."""

Messages = Message | Sequence[Message]
"""What is said at once; a single message may stand for a list of one."""

Step = tuple[Messages, float, bool]
"""(what is answered, the turn's reward, whether that was the last turn)."""


class Conversation(Protocol):
  """One episode of an environment with turns: it speaks, a policy answers, and so on.

  Any object with these two is one, made anew for each response by
  `Task.conversation(example)`. Both may be coroutines. The conversations of a record
  are stepped at the same time, each in a thread of its own or, as coroutines, in one
  event loop, which they must not block. One that raises, or takes longer than
  `Turns.seconds`, is set aside: its response is `ABORTED`, counts in no loss and no
  baseline, and the others go on. `close()`, where there is one, is called at the end.

  Example:
    >>> class Guess:  # which number was thought of?
    ...   def __init__(self, number):
    ...     self.number = number
    ...   def reset(self):
    ...     return "a number below 10?"
    ...   def step(self, text):
    ...     if text == self.number:
    ...       return [], 1.0, True
    ...     return ("more" if text < self.number else "less"), 0.0, False
    >>> game: Conversation = Guess("7")
    >>> game.step("3"), game.step("7")
    (('more', 0.0, False), ([], 1.0, True))
  """

  def reset(self) -> Messages | Awaitable[Messages]:
    """What the conversation opens with."""
    ...

  def step(self, text: str) -> Step | Awaitable[Step]:
    """Answers a turn.

    Args:
      text: what the policy said, without special tokens.

    Returns:
      `(messages, reward, done)`: what the policy is told next, which nobody reads if it
      is done; what the turn is worth; whether the conversation is over.
    """
    ...


class Turns(NamedTuple):
  """How long a conversation may become.

  Attributes:
    most: turns of the policy.
    tokens: of the response: all turns and what is said between them.
    seconds: that a step may take.
  """

  most: int
  tokens: int
  seconds: float = 60.0


class ConversationsFailedError(RuntimeError):
  """Half of the conversations of a record or more came to nothing."""


def as_messages(messages: Messages) -> list[Message]:
  """A list of messages, one of them maybe given alone.

  Raises:
    TypeError: something that is no message.

  >>> as_messages("24"), as_messages([{"role": "tool", "content": "24"}])
  (['24'], [{'role': 'tool', 'content': '24'}])
  """
  if isinstance(messages, str | Mapping):
    return [messages]
  found = list(messages)
  for message in found:
    if not isinstance(message, str | Mapping):
      raise TypeError(f"a message is text or a mapping, got {message!r}")
  return found
