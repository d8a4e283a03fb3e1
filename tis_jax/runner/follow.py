"""A run in the processes beside the lead: the same work, when the lead says so."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tis_jax.learner import Batch, Checkpoints, concatenate
from tis_jax.runner import logs
from tis_jax.runner.config import ConfigError
from tis_jax.runner.interrupts import Interrupts
from tis_jax.runner.lineage import Lineage
from tis_jax.runner.settings import Settings
from tis_jax.runner.setup import Parts
from tis_jax.runner.stream import reread
from tis_jax.runner.team import Several
from tis_jax.runner.work import first_state, working
from tis_jax.store import Store, StoreError


class ChosenBatches:
  """The batches that the lead has chosen; a `BatchStream` that decides nothing.

  Attributes:
    position: None, since only the lead's is kept.

  Args:
    store: of the run.
    team: to hear the choice from.
    kept_width: as the lead's stream has it.
    routed: likewise.
  """

  position = None

  def __init__(self, store: Store, team: Several, kept_width: int, routed: bool):
    self._store, self._team = store, team
    self._read = kept_width, routed

  def next(self, version: int, while_waiting, *, step: int, urgent) -> Batch:
    """The batch that the lead's stream gives for the same step."""
    choice = self._team.chosen(step, while_waiting)
    lineage = Lineage.of(choice["attempts"])
    parts = []
    for chosen in choice["records"]:
      held = reread(self._store, chosen, lineage, *self._read)
      if held is None:
        writer, seq, _ = chosen
        raise StoreError(
          f"store {self._store.url}: record {seq} of {writer} is gone, which process "
          "0 has read; has somebody deleted it?"
        )
      parts.append(held.rows)
    return concatenate(parts)


def follow(
  team: Several, settings: Settings, parts: Parts, workdir: Path
) -> dict[str, Any]:
  """Does what the lead says, to the end of the run.

  Returns:
    What `train` does in the lead.

  Raises:
    ProcessFailedError: the lead failed.
  """
  with ExitStack() as stack, team.failing():
    interrupts = stack.enter_context(Interrupts(settings.checkpoint.seconds_to_leave))

    def look():
      if interrupts.wanted:
        team.ask_to_stop()

    _, run, url = team.hear(look)
    _check_shared(workdir, run, settings.processes.seconds)
    checkpoints = stack.enter_context(
      Checkpoints(
        workdir / "checkpoints", parts.identity(run), keep=settings.checkpoint.keep
      )
    )
    state, info, _ = first_state(parts, checkpoints, settings.seed)
    team.hear(look)
    store = Store.open(url, run)
    kept_width = settings.sampler.kept_width(parts.decoder.vocab_size)
    replays = settings.algorithm.replay_experts
    stream = ChosenBatches(store, team, kept_width, replays)
    work = stack.enter_context(
      working(
        settings,
        parts,
        state,
        info,
        team=team,
        store=store,
        stream=stream,
        checkpoints=checkpoints,
      )
    )
    team.meet()
    logs.say(f"process {team.index} of {team.count} follows process 0")
    while True:
      work.publisher.check()
      what, *told = team.hear(look)
      if what == "end":
        return told[0]
      getattr(work, what)(*told)


def _check_shared(workdir: Path, run: str, seconds: float) -> None:
  """Refuses a workdir that only looks like the lead's; a file may come late to it."""
  path = workdir / "run.json"
  deadline = time.monotonic() + seconds
  while not path.exists() or json.loads(path.read_text())["run"] != run:
    if time.monotonic() > deadline:
      raise ConfigError(
        f"{workdir} does not hold run {run}, which process 0 has there: give all "
        "processes a --workdir that they share"
      )
    time.sleep(0.2)
