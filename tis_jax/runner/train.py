"""A run: sampler processes and a learner around one store, from config to figures."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tis_jax.learner import CheckpointError, Checkpoints
from tis_jax.rollouts import Limits
from tis_jax.runner import figures, logs, peers
from tis_jax.runner.config import settings_of
from tis_jax.runner.deterministic import strict_order
from tis_jax.runner.follow import follow
from tis_jax.runner.interrupts import Interrupted, Interrupts
from tis_jax.runner.lineage import Lineage
from tis_jax.runner.run import Run
from tis_jax.runner.settings import Settings, read_config
from tis_jax.runner.setup import Parts, assignment, build
from tis_jax.runner.stream import BatchStream
from tis_jax.runner.team import ProcessSettings, Several, Team, joined
from tis_jax.runner.work import first_state, working
from tis_jax.runner.workdir import (
  check_config,
  identify,
  keep_config,
  locked,
  write_whole,
)
from tis_jax.sampler import Fleet, SamplerFailedError
from tis_jax.sampler.fleet import local_names
from tis_jax.store import RolloutReader, Store, StoreError, TakenOverError
from tis_jax.store.clear import clear

# A record is written whole or not at all: one that is under way need not be.
_SECONDS_FOR_SAMPLERS = 3.0


def train(config: ConfigDict, workdir: Path, config_name: str = "") -> dict[str, Any]:
  """Runs an experiment, or goes on with the one in `workdir`.

  A learner of several processes calls this in each (`ProcessSettings`), and there
  before anything else of JAX's.

  Args:
    config: of the layout of `runner.default_config`.
    workdir: gets the config, metrics, checkpoints, figures and summary.
    config_name: where the config came from, for the header.

  Returns:
    The summary, as in `summary.json`; empty if the run was interrupted.

  Raises:
    ConfigError: settings that are impossible or contradict each other.
    CheckpointError: a checkpoint could not be written or read.
    ConfigChangedError: `workdir` holds a run with other settings.
    BadUpdateError: the loss was not finite; `workdir` has the batch that did it.
    ProcessFailedError: another process of the learner failed; says its words.
    SamplerFailedError: the samplers here died again and again; says their last words.
    StoreError: the store is not there, is another run's, or another learner's by now.
    WorkdirInUseError: another learner runs in `workdir`; nothing there is touched.
  """
  workdir = workdir.resolve()
  processes = settings_of(ProcessSettings, config.processes, "processes")
  with joined(processes) as team, team.failing():
    # Settings that nothing can be made of leave the workdir as it was.
    check_config(config, workdir)
    settings = read_config(config)
    parts = build(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    if isinstance(team, Several) and not team.leads:
      return follow(team, settings, parts, workdir)
    return _lead(team, config, settings, parts, workdir, config_name)


def _lead(
  team: Team,
  config: ConfigDict,
  settings: Settings,
  parts: Parts,
  workdir: Path,
  config_name: str,
) -> dict[str, Any]:
  """The run in the process that decides; in most, the only one."""
  # What is entered last is left first: the samplers end before the store is let go.
  with ExitStack() as stack, team.failing():
    stack.enter_context(locked(workdir, logs.say))
    # Once more: a learner may have come and gone while this one was being built.
    check_config(config, workdir)
    identity = identify(settings.store.url, workdir)
    logs.say(logs.header(config_name, workdir, identity))
    logs.say(parts.header(settings) + peers.summary(config))
    team.tell("run", identity.run, identity.store)
    seconds = settings.checkpoint.seconds_to_leave
    interrupts = stack.enter_context(Interrupts(seconds))
    checkpoints = stack.enter_context(
      Checkpoints(
        workdir / "checkpoints",
        parts.identity(identity.run),
        keep=settings.checkpoint.keep,
      )
    )
    state, info, restored = first_state(parts, checkpoints, settings.seed)
    if restored:
      logs.say(f"resumed  at step {int(state.step)}")
    log = stack.enter_context(
      logs.MetricsLog(
        workdir,
        after_step=int(state.step) if restored else -1,
        evaluates=settings.train.steps if restored else None,
        tensorboard=settings.log.tensorboard,
        wandb_project=settings.log.wandb_project,
        run=identity.run,
        config=config.to_dict(),
      )
    )
    store = Store.open(
      identity.store,
      identity.run,
      create=True,
      config=assignment(settings, parts.base_digest).to_json(),
    )
    keep_config(config, workdir)
    team.tell("store")
    position = info["position"]
    reader = RolloutReader(
      store,
      position and position["cursor"],
      limits=Limits(
        shape=settings.record_shape,
        group_size=settings.sampler.group_size,
        vocab_size=parts.decoder.vocab_size,
        routing=parts.decoder.routing,
        experts=parts.decoder.num_experts or None,
        sampling=settings.sampler.sampling,
      ),
      on_quarantine=logs.say,
      strictly=strict_order(settings, position),
    )
    lineage = Lineage(workdir / "versions.json")
    stream = BatchStream(
      reader,
      groups=settings.train.prompts_per_step,
      filter_groups=settings.train.dynamic_sampling,
      kept_width=settings.sampler.kept_width(parts.decoder.vocab_size),
      routed=settings.algorithm.replay_experts,
      max_staleness=settings.store.max_staleness,
      late=settings.algorithm.late.policy,
      lineage=lineage,
      position=position,
      on_choice=team.choose,
    )
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
    fleet = stack.enter_context(
      Fleet(
        identity.store,
        settings.sampler.count,
        workdir / "samplers",
        on_event=logs.say,
      )
    )
    interrupts.too_late = lambda: _leave_now(fleet, seconds)
    team.too_late = fleet.kill
    # Left before the fleet is: samplers that are told to end need not be made to.
    stack.push(_stopping(store))
    run = Run(
      settings,
      work,
      workdir,
      info,
      store=store,
      stream=stream,
      lineage=lineage,
      fleet=fleet,
      checkpoints=checkpoints,
      log=log,
    )

    def may_go_on():
      interrupts.check()
      team.check()

    team.meet()
    try:
      run.begin()
      while run.step < settings.train.steps:
        run.advance(may_go_on)
    except (StoreError, SamplerFailedError) as error:
      _save_for_next_time(run, error)
      raise
    except Interrupted:
      run.save()
      store.stop("the learner was interrupted")
      fleet.stop(_SECONDS_FOR_SAMPLERS)
      team.tell("end", {})
      checkpoints.wait()
      logs.say(f"stopped at step {run.step}; the same command goes on from here")
      return {}
    summary = run.finish()
    team.tell("end", summary)
    write_whole(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    if identity.where:
      # Memory that the run chose by itself, so nobody else looks after it.
      store.stop("the run has finished")
      fleet.stop()
      needed = {(writer, seq) for writer, seq, _ in stream.position["held"]}
      for line in clear(store, needed, gone=local_names(settings.sampler.count)):
        logs.say(line)

  logs.say("", logs.table(summary), "", sep="\n")
  for path in figures.draw(workdir):
    logs.say(f"figure   {path}")
  return summary


def _leave_now(fleet: Fleet, seconds: float) -> None:
  fleet.kill()
  logs.say(
    f"not through {seconds:g} s after the signal (checkpoint.seconds_to_leave), so the "
    "run ends where it is; the same command goes on from its newest checkpoint"
  )


def _stopping(store: Store) -> Callable[..., None]:
  """Tells the samplers to end, and hides no earlier error if it cannot."""

  def leave(_, error: BaseException | None, __) -> None:
    try:
      store.stop("the learner has ended")
    except StoreError as late:
      if error is None:
        raise
      error.add_note(f"The samplers could not be told to end: {late}")

  return leave


def _save_for_next_time(run: Run, error: Exception) -> None:
  """Keeps what was learned before a store or its samplers went away."""
  if isinstance(error, TakenOverError):
    return  # Another learner goes on with the run, from its own checkpoint.
  try:
    run.save()
  except (CheckpointError, FloatingPointError, OSError) as late:
    error.add_note(f"Nor could the state be saved: {late}")
  else:
    error.add_note(f"The state of step {run.step} is saved: the same command goes on.")
