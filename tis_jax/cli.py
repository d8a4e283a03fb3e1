"""The `tis` command. What it runs is imported only when it is asked for."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tis_jax.version import __version__


class Command(NamedTuple):
  """A subcommand: `module.main(argv)`, and the extra that the module needs."""

  module: str
  extra: str
  summary: str


COMMANDS = {
  "train": Command(
    "tis_jax.runner.commands.train", "train", "run an experiment, or go on with it"
  ),
  "sample": Command(
    "tis_jax.sampler.__main__", "train", "sample for a learner that runs elsewhere"
  ),
  "evaluate": Command(
    "tis_jax.runner.commands.evaluate", "train", "held-out accuracy of a run"
  ),
  "inspect": Command(
    "tis_jax.runner.commands.inspect", "train", "look at a run through its store"
  ),
  "export": Command(
    "tis_jax.runner.commands.export", "train", "a run's policy or adapter as files"
  ),
  "study": Command(
    "tis_jax.runner.commands.study", "train", "several runs, and what they come to"
  ),
  "doctor": Command(
    "tis_jax.doctor.command", "train", "what is wrong with a dump, and what to do"
  ),
  "replay": Command(
    "tis_jax.doctor.replay_command", "train", "a dump through corrections, side by side"
  ),
  "check": Command(
    "tis_jax.doctor.check", "train", "hold a dump to limits; exits with 1 if it fails"
  ),
}

_NOTE = "tis COMMAND --help says what it takes."


def usage() -> str:
  """What `tis` without a command prints."""
  width = max(map(len, COMMANDS))
  lines = [
    f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()
  ]
  return "\n".join((f"tis_jax {__version__}\n\ntis COMMAND ...", *lines, "", _NOTE))


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a command line; exits with a sentence where something is missing."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage())
    return
  if argv[0] == "--version":
    print(__version__)
    return
  name, *rest = argv
  if name not in COMMANDS:
    sys.exit(f"tis: no command {name!r}; there are {', '.join(COMMANDS)}")
  command = COMMANDS[name]
  try:
    module = importlib.import_module(command.module)
  except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "tis_jax":
      raise
    sys.exit(
      f"tis {name} needs {error.name}, which is not installed: "
      f'pip install "tis_jax[{command.extra}]"'
    )
  try:
    module.main(rest)
    sys.stdout.flush()
  except BrokenPipeError:
    # Whoever read the output has seen enough; nothing more can be said there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
