"""Runs an experiment: samplers and a learner around one store.

  python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any setting can be given on the command line, such as
`--config.algorithm.correction.truncate.high=3.0`. The same command goes on with a run
that was stopped.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

# Configs import each other as `configs.default`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tis_jax.runner import ExpectedError, train

_CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment")
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything of the run goes")


def parse(argv):
  """The flags; an unknown setting is refused in one line, with the nearest name."""
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    reason = error.args[0]
    sys.exit(f"--config: {reason.args[0] if isinstance(reason, KeyError) else reason}")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"what is {argv[1]!r}? settings are flags, with two dashes")
  # Orbax tells every step of its own; its warnings stay.
  logging.set_verbosity(logging.WARNING)
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  try:
    train(_CONFIG.value, Path(_WORKDIR.value), name)
  except ExpectedError as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse)
