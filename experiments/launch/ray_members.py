"""The driver's side of a fleet on Ray: its members, and who is started again when."""

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray_process import Process, as_one

INTERRUPTED = os.EX_TEMPFAIL
"""The exit code of a learner that was told to end, and has saved its state."""

_DEATHS, _WINDOW_SECONDS = 4, 300.0
# From a sampler's end because the learner stopped, or has gone, to its next start.
_STOPPED_SECONDS = 60.0
# From the end of the learner to that of samplers who are in the middle of a batch.
_GRACE_SECONDS = 30.0
_LOOK_SECONDS = 0.5


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
    0 if it has; `INTERRUPTED` if a signal ended it in order; 1 where it failed.
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
      if member is learner and (code == 0 or (ending and code == INTERRUPTED)):
        return code if asked or code == 0 else 1
      if code == 0:
        # The store told it to stop; a learner that comes back begins with it anew.
        member.rest(_STOPPED_SECONDS)
        continue
      # A learner that was killed, or told to end by its node, goes on with the same
      # command. What it has refused it would only refuse again.
      refused = member is learner and (ending or 0 < code != INTERRUPTED)
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


def say(text: str) -> None:
  print(text, flush=True)


def _cause(code: int) -> str:
  return f"by signal {-code}" if code < 0 else f"with exit code {code}"
