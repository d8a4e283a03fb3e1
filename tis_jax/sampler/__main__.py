"""`tis sample`, or `python -m tis_jax.sampler`: one sampler of a run.

Model, task and sampling come from the store; any number of samplers may come and go.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from tis_jax.engines.served import EngineError
from tis_jax.sampler.process import run_sampler
from tis_jax.store import StoreError
from tis_jax.tasks import MissingDatasetError, TaskError


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="tis sample", description=__doc__)
  parser.add_argument("--store", required=True, help="URL of the run's store")
  parser.add_argument(
    "--name", required=True, help="of this sampler; one at a time may have it"
  )
  parser.add_argument("--parent", type=int, help="end when this process is gone")
  parser.add_argument(
    "--patience",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="wait so long for a learner that has not begun, or has been stopped",
  )
  known = parser.parse_args(argv)
  # A record appears whole or not at all, so ending anywhere does no harm.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
  try:
    run_sampler(known.store, known.name, known.parent, known.patience)
  except (StoreError, EngineError, TaskError, MissingDatasetError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  main(sys.argv[1:])
