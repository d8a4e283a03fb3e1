"""What a training run needs of a task: prompts, answers, and a reward it can check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tis_jax.tasks.conversation import Conversation


class Example(NamedTuple):
  """One prompt and the answer its completions are checked against.

  `id` is the example's place in its split.
  """

  id: int
  prompt: str
  answer: str


@dataclass(frozen=True)
class Task:
  """Prompts to train and to test on, and the reward of a completion.

  Attributes:
    name: what `tis_jax.tasks.load` calls it.
    train: examples to generate rollouts for.
    test: held-out examples; `train` shows none of their prompts.
    reward: `reward(completion, example)`, a float in [0, 1].
    chat: whether a prompt is a user's message, to be wrapped in the tokenizer's chat
      template, rather than text to continue as it stands.
    rewards: further rewards by name, of the form of `reward`, for estimators that weigh
      several (`advantages.gdpo`). `reward` is what is evaluated, and what all other
      estimators are given.
    conversation: `conversation(example)`, an environment with turns for one response to
      the example, see `Conversation`; None where a completion is all there is. Its
      turns' rewards take the place of `reward`. `Example.prompt` then says how long the
      opening is, and examples are left out by it.
  """

  name: str
  train: Sequence[Example]
  test: Sequence[Example]
  reward: Callable[[str, Example], float]
  chat: bool = False
  rewards: Mapping[str, Callable[[str, Example], float]] = field(default_factory=dict)
  conversation: Callable[[Example], Conversation] | None = None
