"""`tis evaluate`: held-out accuracy of a run's newest checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tis_jax.runner import ExpectedError, evaluate_run, logs


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="tis evaluate", description=__doc__)
  parser.add_argument("--workdir", required=True, type=Path, help="of the run")
  parser.add_argument(
    "--base", action="store_true", help="evaluate what the run started from instead"
  )
  parser.add_argument(
    "--prompts", type=int, default=0, help="held-out prompts; 0, the default, for all"
  )
  parser.add_argument("--samples", type=int, default=8, help="answers a prompt (8)")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="of sampling (1); 0 is greedy"
  )
  settings = vars(parser.parse_args(argv))
  try:
    accuracy = evaluate_run(settings.pop("workdir"), **settings)
  except (*ExpectedError, FileNotFoundError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  logs.say(logs.table(accuracy._asdict()))
