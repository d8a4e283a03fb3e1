"""Processes that judge completions: a reward may raise, hang or crash, and no more.

Each process loads the task itself, so a reward may be anything that Python can write,
and is asked for one completion at a time, so that the time limit is each completion's
own. They are started anew, never forked: a process that has used TensorStore or XLA
cannot be.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Pipe, wait
from typing import Any, NamedTuple

from tis_jax.tasks.task import Example, Source, TaskError
from tis_jax.tasks.verdict import Verdict

_START_SECONDS = 300.0
# Deaths in a row without a verdict between them, before a process was ready.
_FALSE_STARTS = 3
# So many completions that hang, before any was judged: all of them will.
_ALL_HANG = 8


class Asked(NamedTuple):
  """One completion, and what is asked of it.

  Attributes:
    what: "reward", "rewards" (the further ones) or "answer".
    completion: generated text.
    example: that it answers.
  """

  what: str
  completion: str
  example: Example


class RewardPool:
  """Judges completions in processes of its own, with a time limit for each.

  A context manager. Processes are started when there is work for them, and end with
  this one. What a reward prints goes where this process's output goes; it sees no
  accelerator through jax.

  Args:
    source: of the task.
    processes: at most so many at once.
    seconds: that the rewards of one completion may take together.

  Raises:
    TaskError: the task cannot be loaded in them, or its rewards hang whatever they are
      given.

  Example:
    >>> source = Source("tis_jax.tasks.gsm8k_steps:load", {})
    >>> with RewardPool(source, processes=1, seconds=10) as pool:
    ...   pool.judge([Asked("reward", text, Example(0, "1+2=", "3")) for text in "23"])
    [Verdict(values=(0.0,), cause='', said=''), Verdict(values=(1.0,), ...)]
  """

  def __init__(self, source: Source, *, processes: int = 2, seconds: float = 10.0):
    self._source, self._most, self._seconds = source, processes, seconds
    self._processes: list[_Process] = []
    self._false_starts = self._hung = 0
    self._judged = False

  def __enter__(self) -> "RewardPool":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes; more work starts new ones."""
    for process in self._processes:
      process.end()
    self._processes.clear()

  def judge(self, asked: Sequence[Asked]) -> list[Any]:
    """A `Verdict` for each, in order; for an "answer" the answer itself, or None."""
    try:
      return self._judge(asked)
    except BaseException:
      # What is under way would be taken for an answer to the next question.
      self.close()
      raise

  def _judge(self, asked: Sequence[Asked]) -> list[Any]:
    waiting = deque(enumerate(asked))
    found: list[Any] = [None] * len(asked)
    left = len(asked)
    while left:
      self._hand_out(waiting)
      now = time.monotonic()
      due = min(process.deadline for process in self._processes) - now
      ready = wait([process.pipe for process in self._processes], max(due, 0.0))
      for process in list(self._processes):
        if process.pipe in ready:
          number, told = self._hear(process)
        elif time.monotonic() > process.deadline:
          number, told = self._give_up(process)
        else:
          continue
        if number is not None:
          found[number] = told
          left -= 1
    return found

  def _hand_out(self, waiting: deque) -> None:
    while len(self._processes) < self._most and sum(
      process.job is None for process in self._processes
    ) < len(waiting):
      self._processes.append(_Process(self._source, self._seconds))
    for process in self._processes:
      if waiting and process.ready and process.job is None:
        number, asked = waiting.popleft()
        process.give(number, asked, self._seconds)

  def _hear(self, process: "_Process") -> tuple[int | None, Any]:
    """What a process said: `(place, verdict)`, or that it is ready, or gone."""
    try:
      told = process.pipe.recv()
    except (EOFError, OSError):
      return self._bury(process)
    if isinstance(told, TaskError):
      self._drop(process)
      raise told
    number, process.job, process.deadline = process.job, None, float("inf")
    self._judged = self._judged or number is not None
    process.ready = True
    self._false_starts = 0
    return number, told

  def _bury(self, process: "_Process") -> tuple[int | None, Any]:
    self._drop(process)
    code = process.code
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if not process.ready:
      self._false_starts += 1
      if self._false_starts == _FALSE_STARTS:
        raise TaskError(
          f"task {self._source.name}: the processes that are to judge its completions "
          f"end while they load it, at last by {how}"
        )
    return process.job, Verdict((), "died", f"its process ended by {how}")

  def _give_up(self, process: "_Process") -> tuple[int | None, Any]:
    self._drop(process)
    if not process.ready:
      raise TaskError(
        f"task {self._source.name} takes more than {_START_SECONDS:.0f} s to load in a "
        "process that is to judge its completions"
      )
    said = f"it took more than {self._seconds:g} s (data.reward_seconds)"
    self._hung += 1
    if self._hung == _ALL_HANG and not self._judged:
      raise TaskError(
        f"task {self._source.name}: none of the first {_ALL_HANG} completions was "
        f"judged within {self._seconds:g} s, so its rewards hang, or need a longer "
        "data.reward_seconds"
      )
    return process.job, Verdict((), "hung", said)

  def _drop(self, process: "_Process") -> None:
    self._processes.remove(process)
    process.end()


class _Process:
  """One process that judges.

  Attributes:
    pipe: to it.
    ready: whether it has loaded the task.
    job: place of the completion that it is at; None while it waits.
    deadline: by `time.monotonic()`, for what it is at.
    code: how it ended.
  """

  def __init__(self, source: Source, seconds: float):
    self.pipe, theirs = Pipe()
    # The path as it is here: a notebook's, say, that has been added to.
    code = (
      f"import sys; sys.path[:] = {sys.path!r}\n"
      f"from tis_jax.tasks.pool_process import main; main({theirs.fileno()})"
    )
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        # An accelerator is the sampler's, and a reward may import jax.
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        # What a reward starts (a program to be tested, say) is ended with it.
        start_new_session=True,
      )
    self.ready, self.code = False, 0
    self.job: int | None = None
    self.deadline = time.monotonic() + _START_SECONDS
    self._send((source, seconds))

  def give(self, number: int, asked: Asked, seconds: float) -> None:
    self.job, self.deadline = number, time.monotonic() + seconds
    self._send(asked)

  def end(self) -> None:
    self.pipe.close()
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self.code = self._process.wait()

  def _send(self, what: Any) -> None:
    # One that is gone is found to be so at the next look at its pipe.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send(what)
