"""`tis train`: samplers and a learner around one store."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from tis_jax.compat import PEERS
from tis_jax.runner import ExpectedError, train
from tis_jax.runner.overrides import override
from tis_jax.runner.peers import set_peer
from tis_jax.runner.recipes import load_recipe, recipes

_EPILOG = f"""\
recipes: {", ".join(recipes())}

Every setting can be given, such as --config.algorithm.correction.truncate.high=3.0;
docs/settings.md lists them. The same command goes on with a run that was stopped.
"""


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog="tis train",
    description=__doc__,
    epilog=_EPILOG,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--config",
    required=True,
    metavar="RECIPE[:ARG]",
    help="a recipe by name, or a Python file with get_config()",
  )
  parser.add_argument(
    "--workdir",
    required=True,
    type=Path,
    help="where everything of the run goes; a run that is there is gone on with",
  )
  parser.add_argument(
    "--peer",
    default="",
    metavar="NAME",
    help=f"take the algorithm of a peer's configuration: {', '.join(PEERS)}",
  )
  parser.add_argument(
    "--peer_config",
    type=Path,
    metavar="FILE",
    help="that configuration: YAML, JSON, or a script with the command line",
  )
  known, rest = parser.parse_known_args(argv)
  # Orbax tells every step of its own; its warnings stay.
  logging.set_verbosity(logging.WARNING)
  try:
    config = load_recipe(known.config)
    if known.peer or known.peer_config:
      set_peer(config, known.peer, known.peer_config)
    override(config, rest)
    summary = train(config, known.workdir, known.config)
  except ExpectedError as error:
    notes = getattr(error, "__notes__", [])
    sys.exit("\n".join((f"{type(error).__name__}: {error}", *notes)))
  if not summary:
    # Interrupted, its state saved: whoever started it is to start it again.
    sys.exit(os.EX_TEMPFAIL)
