"""A run: sampler processes and a learner around one store, from config to figures."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tis_jax.runner import figures, logs
from tis_jax.runner.config import check_config, keep_config
from tis_jax.runner.interrupts import Interrupted, Interrupts
from tis_jax.runner.run import Run


def train(config: ConfigDict, workdir: Path, config_name: str = "") -> dict[str, Any]:
  """Runs an experiment, or goes on with the one in `workdir`.

  Args:
    config: of the layout of `configs/default.py`.
    workdir: gets the config, metrics, checkpoints, figures and summary.
    config_name: where the config came from, for the header.

  Returns:
    The summary, as in `summary.json`; empty if the run was interrupted.

  Raises:
    ConfigError: settings that are impossible or contradict each other.
    ConfigChangedError: `workdir` holds a run with other settings.
    BadUpdateError: the loss was not finite; `workdir` has the batch that did it.
    SamplerFailedError: the samplers here died again and again; says their last words.
  """
  workdir = workdir.resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  check_config(config, workdir)
  with Interrupts() as interrupts, Run(config, workdir, config_name) as run:
    # Only now: settings that nothing can be made of leave the workdir free.
    keep_config(config, workdir)
    try:
      run.evaluate_base()
      while run.step < config.train.steps:
        run.advance(interrupts.check)
    except Interrupted:
      run.save()
      logs.say(f"stopped at step {run.step}; the same command goes on from here")
      return {}
    summary = run.finish()
  (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  logs.say("", logs.table(summary), "", sep="\n")
  for path in figures.draw(workdir):
    logs.say(f"figure   {path}")
  return summary
