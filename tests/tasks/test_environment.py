"""An environment's rewards are of its own prompts and of sampled tokens alone."""

import numpy as np
import pytest

from tis_jax.models import CharacterTokenizer
from tis_jax.tasks import Environment, Example, Task

TOKENIZER = CharacterTokenizer("0123456789+=")
EXAMPLES = [
  Example(3, "1+2=", "3"),
  Example(4, "100+200=", "300"),
  Example(9, "5+4=", "9"),
]


def reward(completion, example):
  assert set(completion) <= set("0123456789"), "padding reached the reward"
  return 0.5 * (completion == example.answer)


@pytest.fixture
def environment():
  task = Task("sums", EXAMPLES, [], reward)
  return Environment(task, TOKENIZER, task.train, max_prompt_tokens=5)


def test_prompts_that_are_too_long_are_left_out_and_the_others_keep_their_ids(
  environment,
):
  assert len(environment) == 2
  assert (environment.ids.tolist(), environment.ids.dtype) == ([3, 9], np.int32)
  assert environment.prompts.mask.sum(axis=1).tolist() == [4, 4]
  decoded = [TOKENIZER.decode(row[row > 0]) for row in environment.prompts.tokens]
  assert decoded == ["1+2=", "5+4="]


def test_rewards_are_those_of_the_indexed_prompts(environment):
  plus = TOKENIZER.encode("+")[0]
  three, nine = TOKENIZER.encode("3"), TOKENIZER.encode("9")
  # What no sampler drew, inside the answer or after it, is no part of the answer.
  tokens = np.array([[*nine, plus], [plus, *nine], [*three, plus]], np.int32)
  mask = tokens != plus
  rewards = environment.rewards(np.array([1, 0, 0]), tokens, mask)
  np.testing.assert_array_equal(rewards, np.array([0.5, 0, 0.5], np.float32))
  assert rewards.dtype == np.float32


def test_named_rewards_come_in_the_order_of_the_task():
  rewards = {"right": reward, "short": lambda text, example: float(len(text) < 2)}
  task = Task("sums", EXAMPLES, [], reward, rewards=rewards)
  environment = Environment(task, TOKENIZER, task.train, max_prompt_tokens=5)
  tokens = np.array([TOKENIZER.encode(text) for text in ("30", "12")], np.int32)
  mask = np.array([[True, False], [True, True]])
  got = environment.named_rewards(np.array([0, 1]), tokens, mask)
  np.testing.assert_array_equal(got, np.array([[0.5, 1], [0, 0]], np.float32))
  assert got.dtype == np.float32


def test_an_environment_without_prompts_is_refused():
  task = Task("sums", EXAMPLES, [], reward)
  with pytest.raises(ValueError, match="fits in 2 tokens"):
    Environment(task, TOKENIZER, task.train, max_prompt_tokens=2)
