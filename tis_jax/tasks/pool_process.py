"""One of the processes of a `RewardPool`: loads the task, judges what it is sent."""

import faulthandler
from collections.abc import Hashable
from multiprocessing.connection import Connection
from numbers import Number
from typing import Any

from tis_jax.tasks.imported import in_words
from tis_jax.tasks.loading import loader
from tis_jax.tasks.pool import Asked
from tis_jax.tasks.task import Source, Task, TaskError
from tis_jax.tasks.verdict import answer_of, judge

# Whoever started this process ends it at the limit. If that one is gone by then, it
# ends itself, even in C code that never gives the interpreter back.
_GRACE_SECONDS = 5.0


def main(file_descriptor: int) -> None:
  """Serves until the other end of the pipe is closed."""
  with Connection(file_descriptor) as pipe:
    try:
      source, seconds = pipe.recv()
      task = _loaded(source)
      pipe.send(task if isinstance(task, TaskError) else None)
      while isinstance(task, Task):
        asked = pipe.recv()
        faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, exit=True)
        told = _told(task, asked)
        faulthandler.cancel_dump_traceback_later()
        pipe.send(told)
    except (EOFError, BrokenPipeError, ConnectionResetError):
      return


def _loaded(source: Source) -> Task | TaskError:
  try:
    return loader(source.name)(**source.options)
  except TaskError as error:
    return error
  except (Exception, SystemExit) as error:
    return TaskError(f"task {source.name}: {in_words(error)}")


def _told(task: Task, asked: Asked) -> Any:
  if asked.what == "answer":
    return _plain(answer_of(task, asked.completion))
  rewards = [task.reward] if asked.what == "reward" else list(task.rewards.values())
  return judge(rewards, asked.completion, asked.example)


def _plain(answer: Hashable) -> Hashable:
  """The answer, or what stands for it where another process might not know its type."""
  return answer if answer is None or isinstance(answer, (str, Number)) else repr(answer)
