"""GSM8K with a calculator: a task whose responses are conversations.

Of its two forms "questions" is for language models: GSM8K's word problems, and a
calculator that answers the calls that GSM8K's own annotations look like, `<<48/2=`.
"steps" is for the policy in the package: GSM8K's calculator steps, and a calculator
that it may ask instead of answering.
"""

import re

from tis_jax.tasks import gsm8k, gsm8k_steps
from tis_jax.tasks.calculator import CalculatorError, calculate, written
from tis_jax.tasks.numbers import final_number, parse_number
from tis_jax.tasks.task import Example, Task

FORMS = ("steps", "questions")
INSTRUCTION = (
  "To calculate, write <<48/2= with your own numbers and stop: you will be told the "
  "result. Finish with the answer after ####."
)
_CALL = re.compile(r"<<([^<>=]*)=")


def load(
  form: str = "steps",
  gsm8k_dir: str | None = None,
  data_dir: str | None = None,
  instruction: str = INSTRUCTION,
  max_operands: int = 2,
  max_length: int = 7,
  max_digits: int = 4,
  cost: float = 0.0,
) -> Task:
  """GSM8K's steps or problems, to be solved with a calculator.

  "steps" asks `48/2=`. A policy that answers 24 is done. One whose answer begins with
  0, as no number above 0 does, asks the calculator, which shows `=24`; a second turn
  then takes what it shows by saying nothing, or says another number. (A digit, since
  the packaged policy was trained to say nothing but digits.)

  "questions" asks GSM8K's word problems. `<<48/2=` in a turn is answered with
  `48/2=24`, and `#### 72` is the answer.

  Args:
    form: "steps" (nothing to download) or "questions" (chat).
    gsm8k_dir: of "questions", see `tis_jax.tasks.gsm8k.load`.
    data_dir: likewise.
    instruction: of "questions", behind every one on a line of its own.
    max_operands: of "steps", see `tis_jax.tasks.gsm8k_steps.load`.
    max_length: likewise.
    max_digits: likewise.
    cost: of "steps", what is taken off the reward of an answer that the calculator was
      asked for.

  Returns:
    A task with conversations. A right answer is worth 1, or `1 - cost`.

  Raises:
    ValueError: an unknown form, or a cost outside 0 to 1.
    MissingDatasetError: of "questions", no such files.

  >>> task = load(cost=0.1)
  >>> talk = task.conversation(task.train[0])
  >>> talk.reset(), talk.step("05"), talk.step("")
  ('48/2=', ('=24', 0.0, False), ('', 0.9, True))

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (MIT licence).
  """
  # Judges load tasks in processes of their own: no jax for two checks.
  if form not in FORMS:
    raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
  if not 0 <= cost <= 1:
    raise ValueError(f"cost must be between 0 and 1, got {cost}")
  if form == "steps":
    source = gsm8k_steps.load(max_operands, max_length, max_digits)
    conversation = lambda example: AskedCalculator(example, cost)
  else:
    source = gsm8k.load(gsm8k_dir, data_dir, instruction)
    conversation = Calculator
  return Task(
    "gsm8k_calculator",
    source.train,
    source.test,
    source.reward,
    chat=source.chat,
    conversation=conversation,
  )


class AskedCalculator:
  """A step, and a calculator that a policy may ask for it once."""

  def __init__(self, example: Example, cost: float):
    self._example, self._cost = example, cost
    self._shown = ""

  def reset(self) -> str:
    return self._example.prompt

  def step(self, text: str) -> tuple[str, float, bool]:
    answer = parse_number(self._example.answer)
    if self._shown:
      right = parse_number(text or self._shown) == answer
      return "", (1 - self._cost) * right, True
    right = parse_number(text) == answer
    if right or not text.startswith("0"):
      return "", float(right), True
    self._shown = written(calculate(self._example.prompt.removesuffix("=")))
    return f"={self._shown}", 0.0, False


class Calculator:
  """A problem in words, and a calculator that answers calls until the answer is given.

  What is wrong with an expression, it says in words.
  """

  def __init__(self, example: Example):
    self._example = example

  def reset(self) -> str:
    return self._example.prompt

  def step(self, text: str) -> tuple[str, float, bool]:
    given = final_number(text)
    if given is not None:
      return "", float(given == parse_number(self._example.answer)), True
    said = [_told(call.strip()) for call in _CALL.findall(text)]
    return "\n".join(said) or "No <<...= to calculate, and no ####.", 0.0, False


def _told(expression: str) -> str:
  try:
    return f"{expression}={written(calculate(expression))}"
  except CalculatorError as error:
    return f"{expression}: {error}"
