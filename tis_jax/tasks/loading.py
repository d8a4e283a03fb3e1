"""Tasks by name: those that come with the library, a table, or anybody's function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tis_jax.numerics.names import did_you_mean
from tis_jax.tasks import gsm8k, gsm8k_answers, gsm8k_calculator, gsm8k_steps, table
from tis_jax.tasks.gsm8k import MissingDatasetError
from tis_jax.tasks.imported import absolute, imported, in_words, is_imported
from tis_jax.tasks.task import Example, Source, Task, TaskError

TASKS: dict[str, Callable[..., Task]] = {
  "gsm8k": gsm8k.load,
  "gsm8k_answers": gsm8k_answers.load,
  "gsm8k_calculator": gsm8k_calculator.load,
  "gsm8k_steps": gsm8k_steps.load,
  "table": table.load,
}


def load(name: str, **options) -> Task:
  """A task by name.

  Args:
    name: "gsm8k_steps" (arithmetic in the package, nothing to download), "gsm8k",
      "gsm8k_answers" (the last line of GSM8K's solutions), "gsm8k_calculator"
      (conversations with a calculator), "table" (prompts and answers in a file),
      "package.module:function", or "path/to/file.py:function". Without a
      function it is `load`.
    **options: of that function, or of the `load` of the module of that name in
      `tis_jax.tasks`.

  Returns:
    The task.

  Raises:
    ValueError: an unknown name.
    TaskError: what the name stands for cannot be imported, raises, or gives no task
      that can be trained on; a table without such a column, or without rows.
    TypeError: an option that the task does not have.
    MissingDatasetError: a dataset that is not on this machine.

  >>> task = load("gsm8k_steps", max_length=5)
  >>> task.train[0].prompt, task.train[0].answer
  ('48/2=', '24')
  >>> load("tis_jax.tasks.gsm8k_steps:load", max_length=5).train == task.train
  True
  """
  source = settled(name, options)
  function = loader(source.name)
  if not is_imported(source.name):
    task = function(**source.options)
  else:
    try:
      task = function(**source.options)
    except (MissingDatasetError, TaskError):
      raise
    except (Exception, SystemExit) as error:
      raise TaskError(f"task {source.name}: {in_words(error)}") from error
    _check(source.name, task)
    if task.apart is None:
      task = dataclasses.replace(task, apart=True)
  return task if task.source else dataclasses.replace(task, source=source)


def loader(name: str) -> Callable[..., Task]:
  """The function that makes the task of a name.

  Raises:
    ValueError: an unknown name.
    TaskError: what the name stands for cannot be imported.
  """
  if name in TASKS:
    return TASKS[name]
  if not is_imported(name):
    raise ValueError(
      f"no task {name!r}{did_you_mean(name, TASKS)}. A task of your own is "
      '"package.module:function" or "path/to/file.py:function"'
    )
  return imported(name)


def settled(name: str, options: Mapping[str, Any]) -> Source:
  """A task's name and options with absolute paths: the same for any process here."""
  if name == "table":
    options = table.settled(options)
  elif is_imported(name):
    name = absolute(name)
  return Source(name, dict(options))


def _check(name: str, task: Any) -> None:
  if not isinstance(task, Task):
    raise TaskError(f"{name} gave a {type(task).__name__}, not a tis_jax.tasks.Task")
  for split in ("train", "test"):
    examples = getattr(task, split)
    if not len(examples):
      raise TaskError(
        f"task {name} has no {split} examples: a run trains on the ones and is "
        "evaluated on the others"
      )
    if not isinstance(examples[0], Example):
      kind = type(examples[0]).__name__
      raise TaskError(f"task {name}: {split}[0] is a {kind}, not a tasks.Example")
  for kind, reward in {"reward": task.reward, **task.rewards}.items():
    if not callable(reward):
      raise TaskError(f"task {name}: {kind} is {reward!r:.80}, not a function")
