"""A task from a table: a prompt and an answer a row, and a reward by name. No code."""

import functools
import json
import string
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tis_jax.numerics.names import did_you_mean
from tis_jax.tasks.imported import absolute, imported, is_imported
from tis_jax.tasks.numbers import parse_number
from tis_jax.tasks.rewards import ANSWERS, REWARDS
from tis_jax.tasks.rows import Row, read_dataset, read_file
from tis_jax.tasks.task import Example, Source, Task, TaskError

_SHOWN = 3


def load(
  path: str = "",
  test_path: str = "",
  dataset: str = "",
  train_split: str = "train",
  test_split: str = "test",
  data_dir: str | None = None,
  test_fraction: float = 0.1,
  prompt: str = "prompt",
  answer: str = "answer",
  reward: str = "exact",
  rewards: str | Sequence[str] = (),
  chat: bool | None = None,
  name: str = "table",
) -> Task:
  """Prompts and answers in a file or a prepared data set, as a task.

  A row without a prompt or an answer is left out, and so is one whose answer is no
  number where the reward is for numbers; how many, and the first of them, are said.
  A prompt that train shows is not in test, and one that a split repeats is taken once.

  Args:
    path: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file.
    test_path: a file with held-out rows; without one, `test_fraction` of `path`.
    dataset: instead of `path`, "tfds:NAME" of TensorFlow Datasets or "hf:NAME" of
      Hugging Face's datasets, prepared on this machine.
    train_split: of the data set.
    test_split: of the data set; empty for `test_fraction` of `train_split`.
    data_dir: where the data set was prepared; None is its library's default.
    test_fraction: share of the prompts that is held out where no other rows are: those
      whose checksum is small, whatever the order of the rows.
    prompt: the column, or text with columns in braces: "{question}\\nAnswer:".
    answer: the column, or text with columns in braces.
    reward: "exact", "contains", "number", "final", "last_number" (see
      `tis_jax.tasks.rewards`), "package.module:function" or "path/to/file.py:function".
    rewards: further ones by the same names, for estimators that weigh several; a tuple,
      or names with commas between them. An imported one is called as its function is.
    chat: wrap prompts in the model's chat template; None does where there is one.
    name: of the task, in messages.

  Returns:
    A task. `example.extra` has the row's other columns.

  Raises:
    TaskError: no such column, with those that there are; no row that can be used; an
      unknown reward.
    MissingDatasetError: no such file or data set; says how to get it.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = Path(folder) / "sums.jsonl"
  ...   rows = [{"q": f"{i}+1", "a": i + 1, "level": i % 3} for i in range(20)]
  ...   _ = file.write_text("".join(json.dumps(row) + "\\n" for row in rows))
  ...   task = load(path=str(file), prompt="{q}=", answer="a", reward="number")
  >>> len(task.train), len(task.test), task.train[1]
  (17, 3, Example(id=1, prompt='1+1=', answer='2', extra={'q': '1+1', 'level': 1}))
  >>> task.reward("2.0", task.train[1])
  1.0
  """
  if bool(path) == bool(dataset):
    raise TaskError("a table has either a path or a dataset: set one of the two")
  if not 0 < test_fraction < 1:
    raise TaskError(f"test_fraction must be between 0 and 1, got {test_fraction}")
  chosen = _named(reward)
  further = {_called(one): _named(one) for one in _several(rewards)}
  numeric = any(one in ANSWERS for one in (reward, *_several(rewards)))
  read = functools.partial(_examples, prompt=prompt, answer=answer, numeric=numeric)
  if path:
    rows, held_out = read_file(path), test_path and read_file(test_path)
  else:
    rows = read_dataset(dataset, train_split, data_dir)
    held_out = test_split and read_dataset(dataset, test_split, data_dir)
  train, notes = read(rows)
  if held_out:
    test, more = read(held_out)
    notes += more
  else:
    train, test = _split(train, test_fraction)
  shown = {example.prompt for example in train}
  test = [example for example in test if example.prompt not in shown]
  if not test:
    raise TaskError(
      f"no prompt of {path or dataset} is left to be held out: give test_path, or a "
      f"larger test_fraction (now {test_fraction:g})"
    )
  return Task(
    name,
    _numbered(train),
    _numbered(test),
    chosen,
    chat=chat,
    rewards=further,
    answer_of=ANSWERS.get(reward),
    apart=any(map(is_imported, (reward, *_several(rewards)))),
    # Whoever only judges need not read the table.
    source=Source(f"{__name__}:rewards_alone", {"reward": reward, "rewards": rewards}),
    notes=tuple(notes),
  )


def rewards_alone(reward: str, rewards: str | Sequence[str]) -> Task:
  """The task without its prompts."""
  further = {_called(one): _named(one) for one in _several(rewards)}
  return Task("table", (), (), _named(reward), rewards=further)


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
  """The options with absolute paths."""
  found = dict(options)
  for option in ("path", "test_path", "data_dir"):
    if found.get(option):
      found[option] = str(Path(found[option]).expanduser().resolve())
  library, _, name = str(found.get("dataset", "")).partition(":")
  if library == "hf" and Path(name).is_dir():
    found["dataset"] = f"hf:{Path(name).resolve()}"
  if found.get("reward"):
    found["reward"] = absolute(found["reward"])
  if found.get("rewards"):
    found["rewards"] = ",".join(map(absolute, _several(found["rewards"])))
  return found


def _several(rewards: str | Sequence[str]) -> list[str]:
  given = rewards.split(",") if isinstance(rewards, str) else rewards
  return [one.strip() for one in given if one.strip()]


def _called(reward: str) -> str:
  return reward.rpartition(":")[-1] if is_imported(reward) else reward


def _named(reward: str) -> Callable:
  if is_imported(reward):
    return imported(reward, "reward")
  if reward not in REWARDS:
    raise TaskError(
      f"no reward {reward!r}{did_you_mean(reward, REWARDS)}. One of your own is "
      '"package.module:function" or "path/to/file.py:function"'
    )
  return REWARDS[reward]


def _examples(
  rows: Iterable[tuple[str, Row]], *, prompt: str, answer: str, numeric: bool
) -> tuple[list[Example], list[str]]:
  """What the rows hold, each prompt once, and what is to be said of the others."""
  found: dict[str, Example] = {}
  left_out: list[str] = []
  columns = {prompt: _columns(prompt), answer: _columns(answer)}
  where = ""
  for where, row in rows:
    if not found and not left_out:
      _check_columns(where, row, columns)
    texts = {text: _filled(text, names, row) for text, names in columns.items()}
    asked, right = texts[prompt], texts[answer]
    if why := _unusable(columns, prompt, answer, asked, right, numeric):
      left_out.append(f"{where} has {why}")
      continue
    used = {name for text in columns for name in columns[text] if text == name}
    extra = {name: value for name, value in row.items() if name not in used}
    found.setdefault(asked, Example(len(found), asked, right, extra or None))
  if not found:
    first = f": {left_out[0]}" if left_out else ""
    raise TaskError(f"the table has no row that can be used{first}")
  if not left_out:
    return list(found.values()), []
  shown = "; ".join(left_out[:_SHOWN]) + ("; ..." if left_out[_SHOWN:] else "")
  count = f"{len(left_out)} row{'s' if left_out[1:] else ''}"
  return list(found.values()), [f"{count} of the table left out: {shown}"]


def _columns(text: str) -> list[str]:
  """The columns that a text has in braces, or the one that it is."""
  try:
    named = [name for _, name, _, _ in string.Formatter().parse(text) if name]
  except ValueError as error:
    raise TaskError(f"{text!r} cannot be filled in: {error}") from error
  return named or [text]


def _check_columns(where: str, row: Row, columns: Mapping[str, list[str]]) -> None:
  for name in (name for names in columns.values() for name in names):
    if name not in row:
      raise TaskError(
        f"{where} has no column {name!r}{did_you_mean(name, row)} "
        f"(the columns are {', '.join(row)})"
      )


def _filled(text: str, names: list[str], row: Row) -> str:
  """The text of a row; "" where a column of it is empty or missing."""
  values = {name: _text(row.get(name)) for name in names}
  if not all(values.values()):
    return ""
  return values[text] if names == [text] else text.format_map(values)


def _text(value: Any) -> str:
  if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
    value = value.item()  # A scalar of numpy's, as TFDS gives them.
  if value is None or isinstance(value, str):
    return "" if value is None or not value.strip() else value
  return json.dumps(value, default=str)


def _unusable(columns, prompt, answer, asked: str, right: str, numeric: bool) -> str:
  if not asked:
    return f"no {' or '.join(map(repr, columns[prompt]))}"
  if not right:
    return f"no {' or '.join(map(repr, columns[answer]))}"
  if numeric and parse_number(right) is None:
    return f"an answer that is no number: {right!r:.60}"
  return ""


def _split(examples: list[Example], test_fraction: float):
  held = [zlib.crc32(x.prompt.encode()) < test_fraction * 2**32 for x in examples]
  train = [x for x, out in zip(examples, held, strict=True) if not out]
  test = [x for x, out in zip(examples, held, strict=True) if out]
  return train, test


def _numbered(examples: Iterable[Example]) -> tuple[Example, ...]:
  return tuple(x._replace(id=i) for i, x in enumerate(examples))
