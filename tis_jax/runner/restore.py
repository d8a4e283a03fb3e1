"""A finished or stopped run, read back from its workdir."""

import dataclasses
from pathlib import Path

from tis_jax.learner import Checkpoints
from tis_jax.runner.evaluate import Accuracy
from tis_jax.runner.settings import read_config
from tis_jax.runner.setup import build
from tis_jax.runner.workdir import identify, load_config


def evaluate_run(
  workdir: Path,
  *,
  base: bool = False,
  prompts: int = 0,
  samples: int = 8,
  temperature: float = 1.0,
) -> Accuracy:
  """Held-out accuracy of a run's newest checkpoint.

  Args:
    workdir: of the run.
    base: evaluate what the run started from instead.
    prompts: held-out prompts; 0 for all.
    samples: answers a prompt.
    temperature: of sampling; 0 is greedy.

  Raises:
    FileNotFoundError: no run there, or none that has a checkpoint.
  """
  settings = read_config(load_config(workdir))
  wanted = dataclasses.replace(
    settings.eval, prompts=prompts, samples=samples, temperature=temperature
  )
  parts = build(dataclasses.replace(settings, eval=wanted))
  if base:
    return parts.evaluate(parts.params)
  identity = {"run": identify(settings.store.url, workdir).run}
  with Checkpoints(workdir / "checkpoints", identity) as checkpoints:
    restored = checkpoints.restore(parts.learner.abstract_state())
  if restored is None:
    raise FileNotFoundError(f"{workdir} has no checkpoint yet")
  return parts.evaluate(restored[0].params)
