"""A server that this process starts, and that does not outlive it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tis_jax.engines.served.errors import EngineDownError, EngineError

_LAST_WORDS = 8
_ERROR = re.compile(r"\b\w*Error: ")
_GRACE_SECONDS = 15.0
_POLL_SECONDS = 0.1

# Linux tells the server when its parent is gone, however it went (PR_SET_PDEATHSIG).
_LAUNCH = """
import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
  prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
  os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
  """A TCP port that nobody listens on now."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class ServerProcess:
  """One server process with a log file; starts when it is told to.

  Args:
    command: program and arguments.
    environment: variables, on top of this process's own.
    log: where what it says is appended.
  """

  def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path):
    self._command, self._log = list(command), log
    self._environment = {**os.environ, **environment}
    self._process: subprocess.Popen | None = None
    self._said = 0

  def start(self, ready: Callable[[], bool], seconds: float) -> None:
    """Starts it, and waits until it is ready.

    Args:
      ready: whether it answers; asked again and again.
      seconds: that it may take.

    Raises:
      EngineError: there is no such program.
      EngineDownError: it ended, or is not ready in time; with its last words.
    """
    program = self._command[0]
    if not os.access(program, os.X_OK):
      raise EngineError(f"there is no program {program}")
    self._log.parent.mkdir(parents=True, exist_ok=True)
    launch = [sys.executable, "-c", _LAUNCH, str(os.getpid()), *self._command]
    with self._log.open("ab") as log:
      self._said = log.tell()
      self._process = subprocess.Popen(
        launch,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=self._environment,
        # A server has workers, which may outlive it; a group can be ended whole.
        start_new_session=True,
      )
    deadline = time.monotonic() + seconds
    while not ready():
      if not self.alive:
        raise EngineDownError(f"{program} ended as it started. {self._last_words()}")
      if time.monotonic() > deadline:
        self.stop()
        raise EngineDownError(
          f"{program} was not ready after {seconds:.0f} s. {self._last_words()}"
        )
      time.sleep(_POLL_SECONDS)

  @property
  def alive(self) -> bool:
    return self._process is not None and self._process.poll() is None

  def stop(self) -> None:
    """Ends it and all that it started, whether it runs or has died."""
    process, self._process = self._process, None
    if process is None:
      return
    process.terminate()
    try:
      process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)

  def _last_words(self) -> str:
    """The first error since its start, which the others follow from, and the end."""
    with self._log.open("rb") as log:
      log.seek(self._said)
      lines = log.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if _ERROR.search(line)]
    shown = [*errors[:1], "...", *lines[-_LAST_WORDS:]]
    return f"Its last words, from {self._log}:\n" + "\n".join(f"  {x}" for x in shown)
