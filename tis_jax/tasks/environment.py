"""A task as token arrays: what to generate for, and what an answer is worth."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from tis_jax.tasks.conversation import Conversation, Messages, Turns, as_messages
from tis_jax.tasks.messages import opening_ids, reply_ids
from tis_jax.tasks.pool import Asked, RewardPool
from tis_jax.tasks.prompts import encode_prompts, wraps
from tis_jax.tasks.task import Example, Task
from tis_jax.tasks.verdict import Verdict, answer_of, judge


class Environment:
  """A task's prompts in a model's tokens, and the rewards of answers in them.

  The one place where tokens meet text: what generates takes and gives ids. A context
  manager: leaving ends the processes that judge, where the task has any.

  Attributes:
    prompts: `Prompts`, N of them; those that are too long are left out.
    ids: int32 `[N]`, the examples' places in their split.
    turns: how long a conversation may become; None where the task has none.
    notes: sentences to be said once: what was left out, how prompts are wrapped.
    set_aside: {cause: answers} that have no reward, of `tis_jax.tasks.CAUSES`.
    said: {cause: in words, of the last answer}.

  Args:
    task: whose rewards and whose form of prompt are used.
    tokenizer: of the model.
    examples: of one of the task's splits.
    max_prompt_tokens: longer prompts are left out.
    turns: of a task with `conversation`; for others it says nothing.
    reward_seconds: that the rewards of one answer may take, where the task is judged in
      processes of its own (`Task.apart`).
    reward_processes: at most so many of them.

  Raises:
    ValueError: no prompt fits, the task has conversations and nothing that ends them,
      or it is to be judged apart and nobody knows what it was loaded from.
    TaskError: it asks for a chat template, and there is none.

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
    reward_seconds: float = 10.0,
    reward_processes: int = 2,
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
    self.notes = (*task.notes, *self.prompts.notes)
    self.set_aside: Counter[str] = Counter()
    self.said: dict[str, str] = {}
    self._task, self._tokenizer, self._decode = task, tokenizer, tokenizer.decode
    self._chat = wraps(tokenizer, task.chat)
    self._pool = None
    if task.apart:
      if task.source is None:
        raise ValueError(
          f"task {task.name!r} is to be judged in other processes, which load it by its"
          " name: have it from tis_jax.tasks.load"
        )
      self._pool = RewardPool(
        task.source, processes=reward_processes, seconds=reward_seconds
      )

  def __len__(self) -> int:
    return len(self.ids)

  def __enter__(self) -> "Environment":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes that judge."""
    if self._pool is not None:
      self._pool.close()

  def rewards(
    self, index: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """What answers are worth.

    Args:
      index: int `[B]`, the prompt that each row answers.
      tokens: int32 `[B, T]`.
      mask: bool `[B, T]`, the tokens that were sampled.

    Returns:
      float32 `[B]`, NaN where the reward raised, hung, crashed or gave no number; such
      rows are counted in `set_aside`.
    """
    everywhere = np.ones(len(index), bool)
    work = "reward", [self._task.reward]
    return self._judged(*work, index, tokens, mask, everywhere)[:, 0]

  def named_rewards(
    self,
    index: np.ndarray,
    tokens: np.ndarray,
    mask: np.ndarray,
    where: np.ndarray | None = None,
  ) -> np.ndarray:
    """What answers are worth by each of the task's `rewards`, in their order.

    Args:
      index: see `rewards`.
      tokens: see `rewards`.
      mask: see `rewards`.
      where: bool `[B]`, the rows to judge; None for all.

    Returns:
      float32 `[B, K]`, a row all NaN where one of them gave no number, or that was not
      to be judged.
    """
    where = np.ones(len(index), bool) if where is None else where
    work = "rewards", list(self._task.rewards.values())
    return self._judged(*work, index, tokens, mask, where)

  def answers(
    self, index: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> list[Hashable]:
    """The answer that each row gives, by `Task.answer_of`; None for none.

    Args:
      index: see `rewards`.
      tokens: see `rewards`.
      mask: see `rewards`.
    """
    texts = self._texts(tokens, mask)
    if self._pool is None or self._task.answer_of is None:
      return [answer_of(self._task, text) for text in texts]
    found = self._pool.judge(
      [
        Asked("answer", text, self.prompts.examples[i])
        for i, text in zip(index, texts, strict=True)
      ]
    )
    # A verdict is of a process that hung or died.
    return [None if isinstance(answer, Verdict) else answer for answer in found]

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
    return opening_ids(self._tokenizer, said, chat=self._chat)

  def turn(self, ids: Sequence[int]) -> tuple[str, bool]:
    """What a policy said, and whether it ended the turn itself."""
    ended = len(ids) > 0 and int(ids[-1]) in self._tokenizer.eos_ids
    return self._decode(ids), ended

  def reply(self, messages: Messages, *, ended: bool) -> list[int]:
    """What is said between two turns, in ids: see `tis_jax.tasks.messages`."""
    said = as_messages(messages)
    return reply_ids(self._tokenizer, said, chat=self._chat, ended=ended)

  def _texts(self, tokens, mask) -> list[str]:
    return [self._decode(row[there]) for row, there in zip(tokens, mask, strict=True)]

  def _judged(
    self, what: str, rewards: list[Callable[..., Any]], index, tokens, mask, where
  ) -> np.ndarray:
    asked = [
      Asked(what, text, self.prompts.examples[i])
      for i, text, there in zip(index, self._texts(tokens, mask), where, strict=True)
      if there
    ]
    if self._pool is None:
      verdicts = [judge(rewards, one.completion, one.example) for one in asked]
    else:
      verdicts = self._pool.judge(asked)
    found = np.full((len(index), len(rewards)), np.nan, np.float32)
    for row, verdict in zip(np.flatnonzero(where), verdicts, strict=True):
      if verdict.cause:
        self.set_aside[verdict.cause] += 1
        self.said[verdict.cause] = verdict.said
      else:
        found[row] = verdict.values
    return found
