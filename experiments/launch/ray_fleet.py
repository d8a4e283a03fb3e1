"""A learner and its samplers as actors on a Ray cluster, joined by a store.

python experiments/launch/ray_fleet.py --config=quickstart --workdir=/shared/run \\
  --store=file:///shared/run/store --samplers=8 \\
  --learner_needs=CPU=8,GPU=1 --sampler_needs=CPU=2 --config.train.steps=500

The learner runs `tis train`, each sampler `tis sample`, in a process of its own below
an actor: what one has for the other goes through the store, and Ray carries no arrays.
Ray makes an actor again whose node or worker is gone, and this script starts a process
again that has died.

With --learners=N the learner is N processes, an actor each, spread over the nodes. When
one is gone the others end by themselves, and all are started again, to meet on the node
where the first then is.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

try:
  import ray

  from tis_jax.runner import ConfigError, read_config
  from tis_jax.runner.overrides import override
  from tis_jax.runner.recipes import load_recipe
except ModuleNotFoundError as error:
  if error.name is None or error.name.startswith("tis_jax."):
    raise
  sys.exit(
    f"{sys.executable} has no {error.name}: make ray installs it, or where tis_jax is "
    'installed, on every node, pip install "tis_jax[train,ray]"'
  )

_INTERRUPTED = os.EX_TEMPFAIL
"""The exit code of a learner that was told to end, and has saved its state."""

_KILLED = -signal.SIGKILL
_DEATHS, _WINDOW_SECONDS = 4, 300.0
_PATIENCE_SECONDS = 3600.0
# From a sampler's end because the learner stopped, or has gone, to its next start.
_STOPPED_SECONDS = 60.0
# From the end of the learner to that of samplers who are in the middle of a batch.
_GRACE_SECONDS = 30.0
_LOOK_SECONDS = 0.5
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


class Member:
  """What the driver knows of one actor, or of those of a learner of several processes.

  Attributes:
    name: of it.
    ended: a reference to how its processes end; None while there are none.
    due: when to start it again.
  """

  def __init__(
    self,
    name: str,
    argv: Sequence[str],
    needs: dict[str, Any],
    count: int = 1,
    **more,
  ):
    environment = {}
    if argv[0] == "sample":
      # Beside others on one accelerator, memory is taken as it is needed.
      environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    actor = ray.remote(Process).options(
      # Of losses of a node or a worker: a task under way is begun again with them.
      max_restarts=-1,
      max_task_retries=-1,
      # `end` is heard while `run` runs.
      max_concurrency=2,
      **needs,
      **more,
    )
    self.name, self.ended, self.due = name, None, 0.0
    names = [name] if count == 1 else [f"{name}{index}" for index in range(count)]
    self._actors = [actor.remote(x, argv, environment, os.getcwd()) for x in names]
    self._died: deque[float] = deque(maxlen=_DEATHS)

  def start(self) -> None:
    if len(self._actors) == 1:
      self.ended = self._actors[0].run.remote()
      return
    # None runs before all have a place: Ray waits for every address first.
    addresses = [actor.address.remote() for actor in self._actors]
    self.ended = as_one.remote(
      *(x.run.remote(index, *addresses) for index, x in enumerate(self._actors))
    )

  def result(self) -> tuple[int, str]:
    """(exit code, last words) of the process that has ended."""
    try:
      return ray.get(self.ended)
    except ray.exceptions.RayError as error:
      return 1, str(error)  # Its actor cannot be made.

  def end(self) -> None:
    for actor in self._actors:
      actor.end.remote()

  def kill(self) -> None:
    for actor in self._actors:
      ray.kill(actor)

  def rest(self, seconds: float) -> None:
    """Starts it again only after so many seconds."""
    self.ended, self.due = None, time.monotonic() + seconds

  def bury(self) -> bool:
    """Notes a death, and when to start it again; whether there is a point in it."""
    now = time.monotonic()
    while self._died and now - self._died[0] > _WINDOW_SECONDS:
      self._died.popleft()
    self._died.append(now)
    self.rest(2.0 ** (len(self._died) - 2))
    return len(self._died) < _DEATHS


def supervise(learner: Member, samplers: Sequence[Member]) -> int:
  """Starts all, and those that end again, until the learner has finished.

  Returns:
    0 if it has; `_INTERRUPTED` if a signal ended it in order; 1 where it failed.
  """
  asked: list[int] = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: asked.append(number))
  alive, ending = [learner, *samplers], False
  while True:
    for member in alive:
      if not ending and member.ended is None and time.monotonic() >= member.due:
        member.start()
        if member is learner:
          for sampler in samplers:
            sampler.due = 0.0
    for member in over(alive):
      code, words = member.result()
      if member is learner and (code == 0 or (ending and code == _INTERRUPTED)):
        return code if asked or code == 0 else 1
      if code == 0:
        # The store told it to stop; a learner that comes back begins with it anew.
        member.rest(_STOPPED_SECONDS)
        continue
      # A learner that was killed, or told to end by its node, goes on with the same
      # command. What it has refused it would only refuse again.
      refused = member is learner and (ending or 0 < code != _INTERRUPTED)
      if not refused and member.bury():
        say(f"{member.name} ended {_cause(code)}, and is started again")
        continue
      say(f"{member.name} is given up on, {_cause(code)}. Its last words:\n{words}")
      if member is learner:
        return 1
      alive.remove(member)
    if len(asked) > 1:
      return 1
    if not ending and (asked or (samplers and alive == [learner])):
      why = "a signal came" if asked else "no sampler is left"
      say(f"{why}: the learner saves its state and ends; a second signal ends it now")
      learner.end()
      ending = True


def over(members: Sequence[Member]) -> list[Member]:
  """Those whose processes have ended; waits a moment for one."""
  running = {x.ended: x for x in members if x.ended is not None}
  if not running:
    time.sleep(_LOOK_SECONDS)
    return []
  ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
  return [running[reference] for reference in ended]


def wait_for(members: Sequence[Member]) -> None:
  """Waits for processes that the store has told to end."""
  left = [x.ended for x in members if x.ended is not None]
  if left:
    ray.wait(left, num_returns=len(left), timeout=_GRACE_SECONDS)


def join(address: str) -> None:
  """Makes this process a driver of the cluster."""
  try:
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
      # Ray itself tries for minutes, and then ends the process.
      socket.create_connection((host, int(port)), timeout=10.0).close()
    ray.init(address=address)
  except OSError as error:
    sys.exit(
      f"no Ray cluster at {address} ({error}): start one with ray start --head, or "
      "give --address=local"
    )


def say_what_is_missing(role: str, needs: dict[str, Any], count: int = 1) -> None:
  """Says so where the nodes of now lack what a role needs; one may still join."""
  wanted = {
    "CPU": needs["num_cpus"],
    "GPU": needs["num_gpus"],
    **needs["resources"],
  }
  nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
  wanted = {name: amount for name, amount in wanted.items() if amount}
  text = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
  places = sum(
    min((int(node.get(x, 0) // v) for x, v in wanted.items()), default=count)
    for node in nodes
  )
  if places == 0:
    say(f"no node has {text} for {role}: waiting for one to join")
  elif places < count:
    say(
      f"the nodes have room for {places} of {count} processes of {role}, {text} each: "
      "waiting for one to join"
    )


def needs_of(text: str) -> dict[str, Any]:
  """`CPU=4,TPU=4` as the options of an actor."""
  found = {}
  for part in text.split(","):
    name, equals, count = part.partition("=")
    try:
      found[name] = float(count)
    except ValueError:
      equals = ""
    if not (name and equals):
      raise argparse.ArgumentTypeError(f"{part!r} is not NAME=NUMBER, as CPU=4 is")
  return {
    "num_cpus": found.pop("CPU", 0.0),
    "num_gpus": found.pop("GPU", 0.0),
    "resources": found,
  }


def say(text: str) -> None:
  print(text, flush=True)


def _cause(code: int) -> str:
  return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    epilog="Every --config.NAME=VALUE is the learner's, as of tis train.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", required=True, metavar="RECIPE[:ARG]")
  parser.add_argument(
    "--workdir", required=True, help="that every node sees on which the learner may run"
  )
  parser.add_argument(
    "--store", required=True, metavar="URL", help="of the run, that every node reaches"
  )
  parser.add_argument("--samplers", type=int, default=1)
  parser.add_argument(
    "--learners", type=int, default=1, help="processes of the learner, an actor each"
  )
  for role in ("learner", "sampler"):
    parser.add_argument(
      f"--{role}_needs",
      type=needs_of,
      default="CPU=1",
      metavar="NAME=NUMBER,...",
      help="of a node's resources: CPU, GPU, TPU, or names of your own",
    )
  parser.add_argument(
    "--address",
    default="auto",
    help='of the cluster; "local" for one of this machine alone, made for the run',
  )
  known, settings = parser.parse_known_args(argv)
  if known.learners < 1:
    parser.error(f"--learners={known.learners}: a learner is one process, or several")
  ours = [f"--config.store.url={known.store}", "--config.sampler.count=0"]
  try:
    config = load_recipe(known.config)
    override(config, [*settings, *ours])
    read_config(config)
  except ConfigError as error:
    sys.exit(f"ConfigError: {error}")
  join(known.address)
  say_what_is_missing("the learner", known.learner_needs, known.learners)
  say_what_is_missing("a sampler", known.sampler_needs)
  workdir = os.path.abspath(known.workdir)
  train = ["train", f"--config={known.config}", f"--workdir={workdir}"]
  learner = Member(
    "learner",
    [*train, *settings, *ours],
    known.learner_needs,
    known.learners,
    scheduling_strategy="SPREAD" if known.learners > 1 else "DEFAULT",
  )
  sample = ["sample", f"--store={known.store}", f"--patience={_PATIENCE_SECONDS:g}"]
  samplers = [
    Member(
      name,
      [*sample, f"--name={name}"],
      known.sampler_needs,
      scheduling_strategy="SPREAD",
    )
    for name in (f"ray{number}" for number in range(known.samplers))
  ]
  try:
    code = supervise(learner, samplers)
    if code in (0, _INTERRUPTED):
      wait_for(samplers)
    return code
  finally:
    for member in (learner, *samplers):
      with contextlib.suppress(ray.exceptions.RayError):
        member.kill()
    ray.shutdown()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
