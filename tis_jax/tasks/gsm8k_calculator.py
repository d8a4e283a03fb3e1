"""GSM8K with a calculator: a task whose responses are conversations.

Of its two forms "questions" is for language models: GSM8K's word problems, and a
calculator that answers the calls that GSM8K's own annotations look like, `<<48/2=`.
"steps" is for the policy in the package, which knows digits and `+-*/=` alone: two
steps of a solution, the second one on a pocket calculator.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.tasks.calculator import CalculatorError, calculate, written
from tis_jax.tasks.gsm8k import read_problems
from tis_jax.tasks.gsm8k_steps import read_steps
from tis_jax.tasks.numbers import final_number, parse_number
from tis_jax.tasks.task import Example, Task

FORMS = ("steps", "questions")
INSTRUCTION = (
  "To calculate, write <<48/2= with your own numbers and stop: you will be told the "
  "result. Finish with the answer after ####."
)
_CALL = re.compile(r"<<([^<>=]*)=")
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)(?:\.0*)?")


def load(
  form: str = "steps",
  gsm8k_dir: str | None = None,
  data_dir: str | None = None,
  instruction: str = INSTRUCTION,
  max_length: int = 7,
  max_digits: int = 4,
  first: float = 0.5,
) -> Task:
  """GSM8K's problems, or pairs of their steps, to be solved with a calculator.

  A pair is two steps in a row of which the second uses the first one's result, such as
  `48/2=24` and `48+24=72`. The prompt is `48/2=`. What the policy answers is keyed into
  a calculator that waits with `48+`, and shows `48+24=72=`; the policy's second turn
  says the result. A wrong number makes the calculator right about the wrong sum. The
  default takes 1,450 pairs of train and 105 of test that train does not show.

  Args:
    form: "steps" (pairs, nothing to download) or "questions" (chat).
    gsm8k_dir: of "questions", see `tis_jax.tasks.gsm8k.load`.
    data_dir: likewise.
    instruction: of "questions", behind every one on a line of its own.
    max_length: of "steps", most characters of an expression.
    max_digits: of "steps", most digits of a result.
    first: of "steps", the reward of a right first number; the rest of 1 is for the
      right result.

  Returns:
    A task with conversations. The rewards of a response add up to at most 1: for
    "questions" 1 for the right number after `####`.

  Raises:
    ValueError: an unknown form, or `first` outside 0 to 1.
    MissingDatasetError: of "questions", no such files.

  >>> task = load()
  >>> len(task.train), len(task.test), task.train[0]
  (1450, 105, Example(id=0, prompt='48/2=', answer='72'))
  >>> talk = task.conversation(task.train[0])
  >>> talk.reset(), talk.step("24"), talk.step("72")
  ('48/2=', ('48+24=72=', 0.5, False), ('', 0.5, True))

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (MIT licence).
  """
  check_choice("form", form, FORMS)
  check_number("first", first, at_least=0, at_most=1)
  if form == "questions":
    return _questions(gsm8k_dir, data_dir, instruction)
  train = _pairs("train", max_length, max_digits)
  test = _pairs("test", max_length, max_digits)
  unseen = {prompt: pair for prompt, pair in test.items() if prompt not in train}
  pairs = train | unseen
  return Task(
    "gsm8k_calculator",
    _examples(train),
    _examples(unseen),
    _right,
    conversation=lambda example: PocketCalculator(
      example, pairs[example.prompt], first
    ),
  )


class Pair(NamedTuple):
  """Two steps in a row.

  Attributes:
    number: the first one's result.
    pending: the second, with `_` for that number.
    answer: the second one's result.
  """

  number: str
  pending: str
  answer: str


class PocketCalculator:
  """A calculator on which the second of two steps is keyed in, but for one number."""

  def __init__(self, example: Example, pair: Pair, first: float):
    self._example, self._pair, self._first = example, pair, first
    self._shown = False

  def reset(self) -> str:
    return self._example.prompt

  def step(self, text: str) -> tuple[str, float, bool]:
    if self._shown:
      return "", (1 - self._first) * _right(text, self._example), True
    self._shown = True
    right = parse_number(text) == parse_number(self._pair.number)
    keyed = self._pair.pending.replace("_", text)
    return f"{keyed}={_display(keyed)}=", self._first * right, False


class Calculator:
  """A calculator that answers calls in a model's text, until it gives its answer."""

  def __init__(self, example: Example):
    self._example = example

  def reset(self) -> str:
    return self._example.prompt

  def step(self, text: str) -> tuple[str, float, bool]:
    given = final_number(text)
    if given is not None:
      return "", float(given == parse_number(self._example.answer)), True
    calls = _CALL.findall(text)
    said = [_told(call.strip()) for call in calls]
    return "\n".join(said) or "No <<...= to calculate, and no ####.", 0.0, False


def _told(expression: str) -> str:
  try:
    return f"{expression}={written(calculate(expression))}"
  except CalculatorError as error:
    return f"{expression}: {error}"


def _display(keyed: str) -> str:
  """What a pocket calculator without a decimal point shows; 0 for an error."""
  try:
    value = calculate(keyed)
  except CalculatorError:
    return "0"
  return str(value.numerator) if value.denominator == 1 else "0"


def _right(completion: str, example: Example) -> float:
  return float(parse_number(completion) == parse_number(example.answer))


def _questions(gsm8k_dir, data_dir, instruction) -> Task:
  suffix = f"\n{instruction}" if instruction else ""
  train, test = (
    tuple(
      Example(i, problem.question + suffix, problem.answer)
      for i, problem in enumerate(read_problems(split, gsm8k_dir, data_dir))
    )
    for split in ("train", "test")
  )
  return Task(
    "gsm8k_calculator", train, test, _right, chat=True, conversation=Calculator
  )


class _Step(NamedTuple):
  left: str
  sign: str
  right: str
  result: str


def _pairs(split: str, max_length: int, max_digits: int) -> dict[str, Pair]:
  """Pairs by prompt, in the order of the split."""
  found: dict[str, Pair] = {}
  before = None
  for line in read_steps(split):
    step = _fitting(line, max_length, max_digits)
    if step is not None and before is not None:
      prompt = f"{before.left}{before.sign}{before.right}="
      if before.result == step.left:
        pair = Pair(before.result, f"_{step.sign}{step.right}", step.result)
        found.setdefault(prompt, pair)
      elif before.result == step.right:
        pair = Pair(before.result, f"{step.left}{step.sign}_", step.result)
        found.setdefault(prompt, pair)
    before = step
  return found


def _fitting(line: str, max_length: int, max_digits: int) -> _Step | None:
  """A step of two whole numbers that is short enough."""
  match = _STEP.fullmatch(line)
  if match is None:
    return None
  left, sign, right, result = match.groups()
  step = _Step(str(int(left)), sign, str(int(right)), str(int(result)))
  fits = len(step.left + sign + step.right) <= max_length
  return step if fits and len(step.result) <= max_digits else None


def _examples(pairs: Mapping[str, Pair]) -> tuple[Example, ...]:
  return tuple(
    Example(i, prompt, pair.answer) for i, (prompt, pair) in enumerate(pairs.items())
  )
