"""The actor of a fleet on Ray: one `tis` command in a process below it."""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence

import ray

_KILLED = -signal.SIGKILL
_LAST_WORDS = 25

# The actor holds the other end of the pipe: it closes however the actor ends, and no
# process outlives its actor.
_CHILD = """
import os, sys, threading
def end_with_the_actor():
  os.read(0, 1)
  os._exit(1)
threading.Thread(target=end_with_the_actor, daemon=True).start()
from tis_jax.cli import main
main(sys.argv[1:])
"""


class Process:
  """An actor: one `tis` command in a process below it.

  Not in the actor's own: a signal ends `tis` in order only in a main thread, and a
  process that has died can be told from a node that is gone.

  Args:
    name: of the member, for the log.
    argv: what is typed behind `tis`.
    environment: beside the node's own.
    folder: to run it in, where a node has it: paths in `argv` may be relative.
  """

  def __init__(
    self,
    name: str,
    argv: Sequence[str],
    environment: dict[str, str],
    folder: str,
  ):
    self._name, self._argv = name, list(argv)
    self._environment, self._folder = environment, folder
    self._process: subprocess.Popen | None = None
    self._address = ""

  def __repr__(self) -> str:
    return self._name  # Ray puts it before every line.

  def address(self) -> str:
    """HOST:PORT on this node, free now: where the processes of a learner may meet."""
    with socket.socket() as listener:
      listener.bind(("", 0))
      port = listener.getsockname()[1]
    self._address = f"{ray.util.get_node_ip_address()}:{port}"
    return self._address

  def run(self, index: int = 0, *addresses: str) -> tuple[int, str]:
    """Runs the command to its end: (exit code, last words).

    Args:
      index: of this process among those of a learner of several.
      addresses: what `address` was in each of their actors; none for a process alone.
    """
    argv = self._argv
    if addresses:
      if addresses[index] != self._address:
        # Ray begins this again for an actor that is gone, with its process; the others
        # miss that one, and end.
        return _KILLED, "its actor, or its node, is gone"
      argv = [
        *argv,
        f"--config.processes.count={len(addresses)}",
        f"--config.processes.index={index}",
        f"--config.processes.coordinator={addresses[0]}",
      ]
    said: deque[str] = deque(maxlen=_LAST_WORDS)
    self._process = subprocess.Popen(
      [sys.executable, "-c", _CHILD, *argv],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
      env=self._environment | os.environ,
      cwd=self._folder if os.path.isdir(self._folder) else None,
    )
    print(f"process {self._process.pid} on {os.uname().nodename}", flush=True)
    assert self._process.stdout is not None
    for line in self._process.stdout:
      print(line, end="", flush=True)
      said.append(line)
    return self._process.wait(), "".join(said)

  def end(self) -> None:
    """Asks it to end in order."""
    if self._process is not None:
      self._process.terminate()


@ray.remote(num_cpus=0)
def as_one(*results: tuple[int, str]) -> tuple[int, str]:
  """How a learner of several processes has ended: as the first, or as one was killed.

  Of a process that was killed the others only say that they miss it.
  """
  first, killed = results[0], [x for x in results if x[0] == _KILLED]
  return killed[0] if killed and first[0] != 0 else first


# Nodes have Ray and tis_jax, and maybe not this file: it travels with what is in it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
