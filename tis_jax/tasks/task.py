"""What a training run needs of a task: prompts, answers, and a reward it can check."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tis_jax.tasks.conversation import Conversation


class TaskError(ValueError):
  """A task that cannot be loaded; the message says what is wrong, and where."""


class Example(NamedTuple):
  """One prompt and the answer its completions are checked against.

  Attributes:
    id: its place in its split.
    prompt: what is to be answered or continued.
    answer: what is right.
    extra: what else is known of it, by name (the other columns of a table); None where
      nothing is.
  """

  id: int
  prompt: str
  answer: str
  extra: Mapping[str, Any] | None = None


class Source(NamedTuple):
  """What a task was loaded from, for a process that is to load it again.

  Attributes:
    name: as `tis_jax.tasks.load` takes it, with absolute paths.
    options: of its `load`.
  """

  name: str
  options: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
  """Prompts to train and to test on, and the reward of a completion.

  Attributes:
    name: what `tis_jax.tasks.load` calls it.
    train: examples to generate rollouts for.
    test: held-out examples; `train` shows none of their prompts.
    reward: `reward(completion, example)`, a finite number; 1 is right, and what a
      policy is evaluated by. It may be an `async def`.
    chat: whether a prompt is a user's message, to be wrapped in the tokenizer's chat
      template, rather than text to continue as it stands. None wraps it where the
      tokenizer has a template.
    rewards: further rewards by name, of the form of `reward`, for estimators that weigh
      several (`advantages.gdpo`). `reward` is what is evaluated, and what all other
      estimators are given.
    conversation: `conversation(example)`, an environment with turns for one response to
      the example, see `Conversation`; None where a completion is all there is. Its
      turns' rewards take the place of `reward`. `Example.prompt` then says how long the
      opening is, and examples are left out by it.
    answer_of: the answer that a completion gives, for majority votes: equal for
      completions that say the same, None for one that gives none. None is the
      completion without the space around it.
    apart: whether completions are judged in processes of their own, with a time limit.
      None is True for a task that is loaded by the name of a function or a file.
    source: filled in by `tis_jax.tasks.load`.
    notes: sentences to be said once, by whoever loads it for a run.
  """

  name: str
  train: Sequence[Example]
  test: Sequence[Example]
  reward: Callable[[str, Example], Any]
  chat: bool | None = False
  rewards: Mapping[str, Callable[[str, Example], Any]] = field(default_factory=dict)
  conversation: Callable[[Example], Conversation] | None = None
  answer_of: Callable[[str], Hashable] | None = None
  apart: bool | None = None
  source: Source | None = None
  notes: tuple[str, ...] = ()
