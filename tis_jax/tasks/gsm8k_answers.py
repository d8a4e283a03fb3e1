"""The last line of GSM8K's solutions: what a small language model half knows.

The prompt is a solution without its `#### 72`; the answer is that number. It stands in
the solution, nearly always as its last number, so this is reading and form, no
arithmetic: few tokens a row, and room to learn for a model of 135M parameters.
"""

import re

from tis_jax.tasks.gsm8k import read_problems
from tis_jax.tasks.numbers import leading_number, parse_number
from tis_jax.tasks.task import Example, Task

CUE = "Final answer:"

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def load(
  gsm8k_dir: str | None = None,
  data_dir: str | None = None,
  max_length: int = 160,
  annotations: bool = False,
  cue: str = CUE,
) -> Task:
  """GSM8K's shorter solutions without their last line, as text to continue.

  At 160 characters 2,386 of the 7,473 train solutions and 392 of the 1,319 test ones
  are taken. A test prompt that train shows too is left out.

  Args:
    gsm8k_dir: folder with `train.jsonl` and `test.jsonl` as published; None reads the
      prepared TensorFlow Datasets copy.
    data_dir: where that copy is; None is TFDS's own default.
    max_length: most characters of a solution, as it stands in the prompt.
    annotations: keep the calculator annotations (`<<48/2=24>>`) in the solutions.
    cue: ends every prompt, on a line of its own.

  Returns:
    A task whose reward is 1 when a completion begins with the right number, whatever
    follows it, and 0 otherwise. By name: that, as "correct", and "number", 1 for a
    completion that begins with one.

  Raises:
    MissingDatasetError: no such files; names the command that gets them.
    ValueError: no solution is as short as `max_length`.

  >>> load(gsm8k_dir="nowhere")
  Traceback (most recent call last):
    ...
  tis_jax.tasks.gsm8k.MissingDatasetError: no nowhere/train.jsonl. Point...

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (MIT licence).
  """
  train, test = (
    _prompts(split, gsm8k_dir, data_dir, max_length, annotations, cue)
    for split in ("train", "test")
  )
  unseen = {prompt: answer for prompt, answer in test.items() if prompt not in train}
  rewards = {"correct": _reward, "number": _number}
  return Task(
    "gsm8k_answers",
    _examples(train),
    _examples(unseen),
    _reward,
    rewards=rewards,
    answer_of=leading_number,
  )


def _prompts(split, gsm8k_dir, data_dir, max_length, annotations, cue):
  """Answers by prompt, in the order of the split."""
  found, shortest = {}, None
  for problem in read_problems(split, gsm8k_dir, data_dir):
    solution = problem.solution
    if not annotations:
      solution = _ANNOTATION.sub("", solution)
    shortest = min(len(solution), shortest or len(solution))
    if len(solution) <= max_length:
      found.setdefault(f"{solution}\n{cue}", problem.answer)
  if not found:
    raise ValueError(
      f"no {split} solution has at most max_length={max_length} characters; the "
      f"shortest has {shortest}"
    )
  return found


def _examples(answers) -> tuple[Example, ...]:
  return tuple(Example(i, *one) for i, one in enumerate(answers.items()))


def _number(completion: str, example: Example) -> float:
  return float(leading_number(completion) is not None)


def _reward(completion: str, example: Example) -> float:
  given = leading_number(completion)
  return float(given is not None and given == parse_number(example.answer))
