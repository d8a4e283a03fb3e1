"""GSM8K: grade-school word problems with a numeric answer.

`python -m tis_jax.tasks gsm8k` downloads it, once a machine.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tis_jax.tasks.numbers import final_number, parse_number
from tis_jax.tasks.task import Example, Task

INSTRUCTION = "Think step by step and finish with the answer after ####."


class MissingDatasetError(FileNotFoundError):
  """A dataset is not on this machine; the message says how to get it."""


class Problem(NamedTuple):
  """One of GSM8K's problems.

  Attributes:
    question: in words.
    solution: its steps in words, with calculator annotations (`<<48/2=24>>`).
    answer: the number, as it is written after `####`.
  """

  question: str
  solution: str
  answer: str


def load(
  gsm8k_dir: str | None = None,
  data_dir: str | None = None,
  instruction: str = INSTRUCTION,
  last_number: bool = False,
  chat: bool | None = None,
) -> Task:
  """GSM8K's 7,473 train and 1,319 test problems.

  Args:
    gsm8k_dir: folder with `train.jsonl` and `test.jsonl` as published; None reads the
      prepared TensorFlow Datasets copy.
    data_dir: where that copy is; None is TFDS's own default.
    instruction: appended to every question, on a line of its own.
    last_number: whether the last number of a completion without `####` counts.
    chat: wrap questions in the model's chat template; None does where there is one.

  Returns:
    A task whose reward is 1 for the right number and 0 otherwise. By name: that, as
    "correct", and "marked", 1 for a number after `####`.

  Raises:
    MissingDatasetError: no such files; names the command that gets them.

  >>> load(gsm8k_dir="nowhere")
  Traceback (most recent call last):
    ...
  tis_jax.tasks.gsm8k.MissingDatasetError: no nowhere/train.jsonl. Point...
  """
  suffix = f"\n{instruction}" if instruction else ""
  train, test = (
    tuple(
      Example(i, problem.question + suffix, problem.answer)
      for i, problem in enumerate(read_problems(split, gsm8k_dir, data_dir))
    )
    for split in ("train", "test")
  )
  reward = partial(_reward, last_number=last_number)
  rewards = {"correct": reward, "marked": _marked}
  return Task(
    "gsm8k",
    train,
    test,
    reward,
    chat=chat,
    rewards=rewards,
    answer_of=partial(final_number, last_number=last_number),
  )


def read_problems(
  split: str, gsm8k_dir: str | None = None, data_dir: str | None = None
) -> list[Problem]:
  """GSM8K's problems as published, in their order.

  Args:
    split: "train" (7,473 problems) or "test" (1,319).
    gsm8k_dir: see `load`.
    data_dir: see `load`.

  Raises:
    MissingDatasetError: no such files; names the command that gets them.

  >>> read_problems("test", gsm8k_dir="nowhere")
  Traceback (most recent call last):
    ...
  tis_jax.tasks.gsm8k.MissingDatasetError: no nowhere/test.jsonl. Point...

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (MIT licence).
  """
  if gsm8k_dir is None:
    rows = _from_tfds(split, data_dir)
  else:
    rows = _from_jsonl(split, gsm8k_dir)
  return [_problem(*row) for row in rows]


def _problem(question: str, text: str) -> Problem:
  solution, _, answer = text.rpartition("####")
  return Problem(question, solution.strip(), answer.strip())


def download(data_dir: str | None = None) -> None:
  """Downloads GSM8K and prepares it for `load` (a few seconds; array_record)."""
  _builder(data_dir).download_and_prepare()


def _reward(completion: str, example: Example, *, last_number: bool) -> float:
  given = final_number(completion, last_number=last_number)
  return float(given is not None and given == parse_number(example.answer))


def _marked(completion: str, example: Example) -> float:
  return float(final_number(completion) is not None)


def _from_jsonl(split: str, gsm8k_dir: str) -> list[tuple[str, str]]:
  path = Path(gsm8k_dir) / f"{split}.jsonl"
  if not path.is_file():
    raise MissingDatasetError(
      f"no {path}. Point gsm8k_dir at the published train.jsonl and test.jsonl, or "
      "drop it and get the TFDS copy with: python -m tis_jax.tasks gsm8k"
    )
  with path.open(encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
  return [(row["question"], row["answer"]) for row in rows]


def _from_tfds(split: str, data_dir: str | None) -> list[tuple[str, str]]:
  import tensorflow_datasets as tfds

  where = f" --data_dir={data_dir}" if data_dir else ""
  missing = MissingDatasetError(
    f"GSM8K is not prepared in {data_dir or 'the default TFDS folder'}. Get it with: "
    f"python -m tis_jax.tasks gsm8k{where}  (or point gsm8k_dir at train.jsonl and "
    "test.jsonl)"
  )
  try:
    source: Any = _builder(data_dir).as_data_source(split=split)
  except (tfds.core.DatasetNotFoundError, KeyError, AssertionError) as error:
    # A builder without prepared data has no splits, which TFDS reports as a KeyError.
    raise missing from error
  return [(row["question"].decode(), row["answer"].decode()) for row in source]


def _builder(data_dir: str | None):
  import tensorflow_datasets as tfds
  import tensorflow_datasets.text.gsm8k  # registers the builder, which is lazy

  return tfds.builder("gsm8k", data_dir=data_dir, file_format="array_record")
