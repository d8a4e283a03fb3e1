"""`tis export`: the policy of a run as safetensors, or its adapter as PEFT keeps it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tis_jax.runner import ExpectedError, export_run, logs
from tis_jax.runner.config import refusing
from tis_jax.runner.export import DTYPES


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="tis export", description=__doc__)
  parser.add_argument(
    "--workdir", type=Path, required=True, help="of the run: its newest checkpoint"
  )
  parser.add_argument("--to", type=Path, required=True, help="directory to write")
  parser.add_argument(
    "--adapter",
    action="store_true",
    help="the LoRA adapter alone; by default all params, an adapter merged into them",
  )
  parser.add_argument(
    "--dtype", default="float32", help=f"of the params, {', '.join(DTYPES)} (float32)"
  )
  given = parser.parse_args(argv)
  try:
    with refusing():
      said = export_run(
        given.workdir, given.to, adapter=given.adapter, dtype=given.dtype
      )
  except (*ExpectedError, FileNotFoundError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  logs.say(said)
