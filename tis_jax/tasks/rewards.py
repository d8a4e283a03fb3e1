"""Rewards by name, for tables: what needs nobody's code."""

from collections.abc import Callable, Hashable, Mapping

from tis_jax.tasks.numbers import final_number, leading_number, parse_number
from tis_jax.tasks.task import Example


def exact(completion: str, example: Example) -> float:
  """1 for the answer and nothing else but space around it.

  >>> exact(" Paris\\n", Example(0, "Capital of France?", "Paris"))
  1.0
  """
  return float(completion.strip() == example.answer.strip())


def contains(completion: str, example: Example) -> float:
  """1 where the answer stands anywhere in the completion.

  >>> contains("It is Paris.", Example(0, "Capital of France?", "Paris"))
  1.0
  """
  return float(example.answer.strip() in completion)


def number(completion: str, example: Example) -> float:
  """1 for a completion that begins with the answer's number, however it is written.

  >>> number(" $1,200.0 a day", Example(0, "How much?", "1200"))
  1.0
  """
  return float(_same(leading_number(completion), example))


def final(completion: str, example: Example) -> float:
  """1 where the number after the last `####` is the answer's, as GSM8K writes it.

  >>> final("4 * 9 = 36. #### 36", Example(0, "How much?", "36"))
  1.0
  """
  return float(_same(final_number(completion), example))


def last_number(completion: str, example: Example) -> float:
  """1 where the number after the last `####`, or else the last one, is the answer's.

  >>> last_number("4 * 9 = 36 dollars", Example(0, "How much?", "36"))
  1.0
  """
  return float(_same(_last(completion), example))


def _same(given, example: Example) -> bool:
  return given is not None and given == parse_number(example.answer)


def _last(completion: str):
  return final_number(completion, last_number=True)


REWARDS: Mapping[str, Callable[[str, Example], float]] = {
  "exact": exact,
  "contains": contains,
  "number": number,
  "final": final,
  "last_number": last_number,
}
"""What `reward` and `rewards` of a table may be called."""

ANSWERS: Mapping[str, Callable[[str], Hashable]] = {
  "number": leading_number,
  "final": final_number,
  "last_number": _last,
}
"""The rewards that are for numbers, and the number that a completion gives each."""
