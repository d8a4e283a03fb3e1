"""Sampler processes on this machine: started, watched, started again, given up on."""

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_LAST_WORDS = 25
_GRACE_SECONDS = 20.0
_LEAST_SECONDS = 0.5


class SamplerFailedError(RuntimeError):
  """A sampler died again and again; the message has its last words."""


class Fleet:
  """`count` samplers of one store, each a process of its own with a log file.

  They are started anew, not forked: a process that has used TensorStore or XLA cannot
  be forked. Each ends by itself when the store says so or when this process is gone.
  A context manager: entering starts them, leaving waits until they have ended.

  Args:
    url: of the store.
    count: how many; 0 for none.
    folder: for their logs.
    deaths: a sampler that dies so often within `window` seconds is given up on.
    window: seconds.
    on_event: told in a sentence of every death and restart.
  """

  def __init__(
    self,
    url: str,
    count: int,
    folder: Path,
    *,
    deaths: int = 4,
    window: float = 300.0,
    on_event: Callable[[str], None] = print,
  ):
    folder.mkdir(parents=True, exist_ok=True)
    self._url, self._folder, self._on_event = url, folder, on_event
    self._deaths, self._window = deaths, window
    self._died = {name: deque(maxlen=deaths) for name in local_names(count)}
    self._processes: dict[str, subprocess.Popen] = {}

  def start(self) -> None:
    """Starts all of them."""
    for name in self._died:
      self._processes[name] = self._launch(name)

  def __enter__(self) -> "Fleet":
    self.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    # Whoever has lost patience does not wait for records that nobody will take.
    hurried = kind is not None and not issubclass(kind, Exception)
    self.stop(0.0 if hurried else _GRACE_SECONDS)

  def check(self) -> None:
    """Starts those that died again, later with every death.

    Raises:
      SamplerFailedError: one died too often.
    """
    now = time.monotonic()
    for name, died in self._died.items():
      process = self._processes.get(name)
      if process is not None and process.poll() is None:
        continue
      if process is not None:
        self._bury(name, process, now)
      if now >= died[-1] + 2.0 ** (len(died) - 2):
        self._processes[name] = self._launch(name)
        self._on_event(f"sampler {name} started again")

  def stop(self, grace: float = _GRACE_SECONDS) -> None:
    """Waits for them to end, as the store has told them to; then ends them.

    Args:
      grace: seconds to wait. None lives when this returns, or raises.
    """
    deadline = time.monotonic() + grace
    try:
      for end in (None, subprocess.Popen.terminate):
        for process in self._processes.values():
          if process.poll() is None and end is not None:
            end(process)
        for process in self._processes.values():
          with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), _LEAST_SECONDS))
    finally:
      self.kill()
    for process in self._processes.values():
      process.wait()
    self._processes.clear()

  def kill(self) -> None:
    """Ends those that live, at once; does not wait."""
    for process in self._processes.values():
      if process.poll() is None:
        process.kill()

  def _bury(self, name: str, process: subprocess.Popen, now: float) -> None:
    del self._processes[name]
    died = self._died[name]
    while died and now - died[0] > self._window:
      died.popleft()
    died.append(now)
    how = _cause(process.returncode)
    if len(died) == self._deaths:
      raise SamplerFailedError(
        f"sampler {name} died {len(died)} times in {self._window:.0f} s, at last "
        f"{how}. Its last words, from {self._log(name)}:\n{self._last_words(name)}"
      )
    self._on_event(f"sampler {name} died {how}; its log is {self._log(name)}")

  def _log(self, name: str) -> Path:
    return self._folder / f"{name}.log"

  def _last_words(self, name: str) -> str:
    lines = self._log(name).read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LAST_WORDS:])

  def _launch(self, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tis_jax.sampler", f"--store={self._url}"]
    command += [f"--name={name}", f"--parent={os.getpid()}"]
    # Beside a learner on one accelerator, memory is taken as it is needed.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    with self._log(name).open("ab") as log:
      return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C in the terminal is the learner's, who ends them in order.
        start_new_session=True,
      )


def local_names(count: int) -> list[str]:
  """Names of the samplers on this machine.

  >>> local_names(2)
  ['local0', 'local1']
  """
  return [f"local{i}" for i in range(count)]


def _cause(code: int) -> str:
  return f"by signal {-code}" if code < 0 else f"with exit code {code}"
