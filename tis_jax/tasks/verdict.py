"""What a completion is worth, or why nobody can say."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tis_jax.tasks.imported import in_words
from tis_jax.tasks.task import Example, Task

CAUSES = ("raised", "hung", "died", "no_number")
"""Why a completion has no reward: it raised, took too long, ended its process, or gave
something that is no finite number."""


class Verdict(NamedTuple):
  """What one completion is worth, by one or several rewards.

  Attributes:
    values: a finite number a reward; empty where one of them gave none.
    cause: one of `CAUSES`, or "" where there are values.
    said: the cause in words.
  """

  values: tuple[float, ...]
  cause: str = ""
  said: str = ""


def judge(
  rewards: Sequence[Callable[[str, Example], Any]], completion: str, example: Example
) -> Verdict:
  """The verdict of some rewards on one completion, here and without a time limit.

  Args:
    rewards: functions, `async def` or not.
    completion: generated text.
    example: that it answers.

  >>> example = Example(7, "1+2=", "3")
  >>> judge([lambda text, example: text == example.answer], "3", example).values
  (1.0,)
  >>> judge([lambda text, example: 1 / len(text)], "", example)
  Verdict(values=(), cause='raised', said='ZeroDivisionError: division by zero (...')
  >>> judge([lambda text, example: float("nan")], "3", example)
  Verdict(values=(), cause='no_number', said='the reward <lambda> gave nan')
  """
  values = []
  for reward in rewards:
    try:
      value = awaited(reward(completion, example))
    except (Exception, SystemExit) as error:
      return Verdict((), "raised", in_words(error))
    number = _number(value)
    if number is None:
      name = getattr(reward, "__name__", type(reward).__name__)
      shown = f"the reward {name} gave {_shown(value)}"
      return Verdict((), "no_number", shown)
    values.append(number)
  return Verdict(tuple(values))


def awaited(value: Any) -> Any:
  """The value, or what an `async def` comes to."""

  async def wait() -> Any:
    return await value

  return _runner().run(wait()) if inspect.isawaitable(value) else value


@functools.cache
def _runner() -> asyncio.Runner:
  # One loop for all: what a reward keeps open (a client, say) belongs to its loop.
  return asyncio.Runner()


def _number(value: Any) -> float | None:
  if value is None or isinstance(value, (str, bytes)):
    return None
  try:
    number = float(value) if np.ndim(value) == 0 else np.nan
  except (TypeError, ValueError, OverflowError):
    return None
  # Records hold fp32.
  return number if abs(number) <= float(np.finfo(np.float32).max) else None


def _shown(value: Any) -> str:
  try:
    return f"{value!r:.80}"
  except Exception:
    return f"a {type(value).__name__}"


def answer_of(task: Task, completion: str) -> Hashable:
  """The answer that a completion gives, None where it gives none or cannot be read.

  >>> task = Task("words", (), (), lambda text, example: 0, answer_of=str.lower)
  >>> answer_of(task, "Yes")
  'yes'
  """
  if task.answer_of is None:
    return completion.strip() or None
  try:
    answer = task.answer_of(completion)
    hash(answer)
  except Exception:
    return None
  return answer
