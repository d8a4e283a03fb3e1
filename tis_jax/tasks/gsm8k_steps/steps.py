"""The calculator steps as they stand in the package, and the task made of them."""

import re
from importlib.resources import files

from tis_jax.tasks.numbers import parse_number
from tis_jax.tasks.task import Example, Task

_STEP = re.compile(r"(\d+(?:[-+*/]\d+)+)=(\d+)(?:\.0*)?")


def read_steps(split: str) -> list[str]:
  """Distinct calculator steps of GSM8K's solutions, such as `48/2=24`.

  Args:
    split: "train" (11,021 steps), or "test" (the 1,434 steps of the test solutions
      that the training solutions never show).

  Returns:
    The steps as GSM8K writes them, in the order in which they first occur.

  >>> steps = read_steps("train")
  >>> len(steps), steps[:2]
  (11021, ['48/2=24', '48+24=72'])

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (MIT licence).
  """
  path = files("tis_jax.tasks.gsm8k_steps") / f"{split}.txt"
  return path.read_text(encoding="utf-8").splitlines()


def load(max_operands: int = 2, max_length: int = 7, max_digits: int = 4) -> Task:
  """The steps that a very small policy can represent, as prompts `48/2=`.

  A step is taken when every number in it is a whole, non-negative one, and the three
  limits hold. Steps that differ only in how a number is written (`7*1=7`, `7*1=7.00`)
  are one prompt, and a prompt that train shows is not in test. The default
  takes 5,541 of the 11,021 train steps and 554 of the 1,434 test ones.

  Args:
    max_operands: most numbers left of `=`.
    max_length: most characters left of `=`.
    max_digits: most digits of the answer.

  Returns:
    A task whose reward is 1 for the exact number and 0 otherwise. By name: that, as
    "correct", and "number", 1 for an answer that is one.

  >>> task = load()
  >>> len(task.train), len(task.test), task.test[0]
  (5541, 554, Example(id=0, prompt='120+15=', answer='135', extra=None))
  >>> task.reward("135", task.test[0]), task.reward("136", task.test[0])
  (1.0, 0.0)
  """
  train = _subset("train", max_operands, max_length, max_digits)
  test = _subset("test", max_operands, max_length, max_digits)
  unseen = {prompt: answer for prompt, answer in test.items() if prompt not in train}
  rewards = {"correct": _reward, "number": _number}
  return Task(
    "gsm8k_steps",
    _examples(train),
    _examples(unseen),
    _reward,
    rewards=rewards,
    answer_of=parse_number,
  )


def _subset(split: str, operands: int, length: int, digits: int) -> dict[str, str]:
  taken = {}
  for step in read_steps(split):
    if match := _STEP.fullmatch(step):
      expression = re.sub(r"\d+", lambda number: str(int(number[0])), match[1])
      answer = str(int(match[2]))
      few = len(re.findall(r"\d+", expression)) <= operands
      if few and len(expression) <= length and len(answer) <= digits:
        taken.setdefault(f"{expression}=", answer)
  return taken


def _examples(steps: dict[str, str]) -> tuple[Example, ...]:
  return tuple(Example(i, *step) for i, step in enumerate(steps.items()))


def _number(completion: str, example: Example) -> float:
  return float(parse_number(completion) is not None)


def _reward(completion: str, example: Example) -> float:
  return float(parse_number(completion) == parse_number(example.answer))
