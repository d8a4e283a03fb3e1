"""A finished or stopped run, read back from its workdir."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.runner.evaluate import Accuracy
from tis_jax.runner.setup import build, identify


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
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"{workdir} holds no run")
  config = ConfigDict(json.loads((workdir / "config.json").read_text()))
  config.eval.update(prompts=prompts, samples=samples, temperature=temperature)
  parts = build(config)
  if base:
    return parts.evaluate(parts.graph, parts.params)
  identity = {"run": identify(config, workdir).run}
  with Checkpoints(workdir / "checkpoints", identity) as checkpoints:
    restored = checkpoints.restore(parts.abstract_state())
  if restored is None:
    raise FileNotFoundError(f"{workdir} has no checkpoint yet")
  return parts.evaluate(parts.graph, restored[0].params)
