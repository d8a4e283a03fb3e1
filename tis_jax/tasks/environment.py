"""A task as token arrays: what to generate for, and what an answer is worth."""

from collections.abc import Callable, Sequence

import numpy as np

from tis_jax.tasks.conversation import Conversation, Messages, Turns, as_messages
from tis_jax.tasks.messages import opening_ids, reply_ids
from tis_jax.tasks.prompts import encode_prompts
from tis_jax.tasks.task import Example, Task


class Environment:
  """A task's prompts in a model's tokens, and the rewards of answers in them.

  The one place where tokens meet text: what generates takes and gives ids.

  Attributes:
    prompts: `Prompts`, N of them; those that are too long are left out.
    ids: int32 `[N]`, the examples' places in their split.
    turns: how long a conversation may become; None where the task has none.

  Args:
    task: whose rewards and whose form of prompt are used.
    tokenizer: of the model.
    examples: of one of the task's splits.
    max_prompt_tokens: longer prompts are left out.
    turns: of a task with `conversation`; for others it says nothing.

  Raises:
    ValueError: no prompt fits, or a task with conversations and nothing that ends them.

  >>> from tis_jax.models import CharacterTokenizer
  >>> examples = [Example(0, "1+2=", "3"), Example(1, "5+4=", "9")]
  >>> task = Task("sums", examples, [], lambda text, example: text == example.answer)
  >>> environment = Environment(task, CharacterTokenizer("0123456789+="), task.train, 5)
  >>> environment.prompts.tokens.tolist()
  [[0, 3, 12, 4, 13], [0, 7, 12, 6, 13]]
  >>> answers = np.array([[5, 1], [5, 1]])  # 3 and the stop token, to both
  >>> environment.rewards(np.array([0, 1]), answers, answers > 0)
  array([1., 0.], dtype=float32)
  """

  def __init__(
    self,
    task: Task,
    tokenizer,
    examples: Sequence[Example],
    max_prompt_tokens: int,
    *,
    turns: Turns | None = None,
  ):
    if task.conversation is not None and turns is None:
      raise ValueError(
        f"task {task.name!r} has conversations: say how long they may become, turns="
      )
    self.turns = None if task.conversation is None else turns
    self.prompts = encode_prompts(
      tokenizer, examples, max_prompt_tokens, chat=task.chat
    )
    self.ids = np.array([example.id for example in self.prompts.examples], np.int32)
    self._task, self._tokenizer, self._decode = task, tokenizer, tokenizer.decode

  def __len__(self) -> int:
    return len(self.ids)

  def rewards(
    self, index: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """What answers are worth.

    Args:
      index: int `[B]`, the prompt that each row answers.
      tokens: int32 `[B, T]`.
      mask: bool `[B, T]`, the tokens that were sampled.

    Returns:
      float32 `[B]`.
    """
    return self._judged(self._task.reward, index, tokens, mask)

  def named_rewards(
    self, index: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """What answers are worth by each of the task's `rewards`, in their order.

    Args:
      index: see `rewards`.
      tokens: see `rewards`.
      mask: see `rewards`.

    Returns:
      float32 `[B, K]`.
    """
    columns = [
      self._judged(reward, index, tokens, mask)
      for reward in self._task.rewards.values()
    ]
    return np.stack(columns, axis=1)

  def conversation(self, index: int) -> Conversation:
    """A new conversation about a prompt.

    Raises:
      ValueError: the task has none.
    """
    if self._task.conversation is None:
      raise ValueError(f"task {self._task.name!r} has no conversations")
    return self._task.conversation(self.prompts.examples[index])

  def opening(self, messages: Messages) -> list[int]:
    """What a conversation opens with, in ids."""
    said = as_messages(messages)
    return opening_ids(self._tokenizer, said, chat=self._task.chat)

  def turn(self, ids: Sequence[int]) -> tuple[str, bool]:
    """What a policy said, and whether it ended the turn itself."""
    ended = len(ids) > 0 and int(ids[-1]) in self._tokenizer.eos_ids
    return self._decode(ids), ended

  def reply(self, messages: Messages, *, ended: bool) -> list[int]:
    """What is said between two turns, in ids: see `tis_jax.tasks.messages`."""
    said = as_messages(messages)
    return reply_ids(self._tokenizer, said, chat=self._task.chat, ended=ended)

  def _judged(self, reward: Callable, index, tokens, mask) -> np.ndarray:
    rewards = [
      reward(self._decode(row[there]), self.prompts.examples[i])
      for i, row, there in zip(index, tokens, mask, strict=True)
    ]
    return np.array(rewards, np.float32)
