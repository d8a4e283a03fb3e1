"""The runs of a study, made: each in a process and a workdir of its own.

A child is `tis train`, so a run that was stopped goes on, and what it leaves behind is
what every run leaves behind. What it says is in `output.log` of its workdir.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tis_jax.runner import logs
from tis_jax.runner.interrupts import Interrupted, Interrupts
from tis_jax.runner.study.plan import PlannedRun
from tis_jax.runner.study.results import LOG, collect

_POLL_SECONDS = 0.2
# A learner that is told to stop ends its step and saves; one that compiles takes long.
_GRACE_SECONDS = 120.0


def default_jobs() -> int:
  """A run is two busy processes, a sampler and a learner."""
  return max(1, (os.cpu_count() or 2) // 2)


def make_runs(runs: Sequence[PlannedRun], folder: Path, jobs: int) -> Mapping[str, str]:
  """Makes the runs that are not made, at most `jobs` at once; says how each ends.

  One that fails does not stop the others. One whose workdir holds another config is
  said and left as it is, and one that ended in a loss that is not finite is a result:
  neither is made again.

  Args:
    runs: of `plan`.
    folder: of their workdirs.
    jobs: processes at once.

  Returns:
    name -> the reason, of those that failed in this call.

  Raises:
    Interrupted: Ctrl-C or SIGTERM; the children have saved their runs and ended.
  """
  waiting, failed = [], {}
  for run in runs:
    result = collect(run, folder)
    if result.state in ("finished", "diverged"):
      continue
    if result.state == "stale":
      logs.say(f"{run.name}  is left out: {result.reason}")
    else:
      waiting.append(run)
  logs.say(f"{len(runs)} runs, {len(waiting)} to make, {jobs} at once, in {folder}")
  children: dict[str, tuple[PlannedRun, subprocess.Popen]] = {}
  with Interrupts() as interrupts:
    try:
      while waiting or children:
        interrupts.check()
        while waiting and len(children) < jobs:
          run = waiting.pop(0)
          children[run.name] = run, _start(run, folder)
          logs.say(f"{run.name}  begins")
        time.sleep(_POLL_SECONDS)
        for name, (run, child) in list(children.items()):
          if child.poll() is not None:
            del children[name]
            failed |= _ended(run, folder, child.returncode)
    except Interrupted:
      logs.say(f"stopping {', '.join(children)}; the same command goes on from there")
      raise
    finally:
      _end([child for _, child in children.values()])
  return failed


def command(run: PlannedRun, workdir: Path) -> list[str]:
  """What is typed to make a run alone, behind `tis`."""
  return ["train", f"--config={run.base}", *run.overrides, f"--workdir={workdir}"]


def _start(run: PlannedRun, folder: Path) -> subprocess.Popen:
  workdir = folder / run.name
  workdir.mkdir(parents=True, exist_ok=True)
  # Runs of one study mostly differ in numbers that compiled code takes as arguments.
  cache = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())}
  with (workdir / LOG).open("ab") as log:
    return subprocess.Popen(
      [sys.executable, "-m", "tis_jax", *command(run, workdir)],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=cache | os.environ,
      # Ctrl-C in the terminal is the study's, which tells them.
      start_new_session=True,
    )


def _ended(run: PlannedRun, folder: Path, code: int) -> dict[str, str]:
  """Says how a run ended; `{name: reason}` unless it finished."""
  result = collect(run, folder)
  if result.state == "finished":
    base, final = (result.summary[f"pass_at_1/{x}"] for x in ("base", "final"))
    seconds = logs.duration(result.summary["wall_seconds"])
    logs.say(f"{run.name}  pass@1 {base:.3f} to {final:.3f} in {seconds}")
    return {}
  reason = f"killed by signal {-code}" if code < 0 else result.reason
  logs.say(f"{run.name}  failed: {reason}; all it said is in {folder / run.name / LOG}")
  return {run.name: reason}


def _end(children: Sequence[subprocess.Popen]) -> None:
  """Tells children to save and end; kills those that do not."""
  try:
    for child in children:
      child.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
      child.wait(max(deadline - time.monotonic(), 0.1))
  except subprocess.TimeoutExpired:
    pass
  finally:
    # Their samplers end by themselves, as their learner is gone.
    for child in children:
      if child.poll() is None:
        child.kill()
        child.wait()
