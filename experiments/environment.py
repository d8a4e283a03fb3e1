"""What a script says when the Python that runs it lacks what it imports."""

import sys
from pathlib import Path
from typing import NoReturn


def refuse(error: ModuleNotFoundError) -> NoReturn:
  """Exits, saying how to enter the environment; a fault of tis_jax itself is raised."""
  if error.name is None or error.name.startswith("tis_jax."):
    raise error
  root = Path(__file__).resolve().parents[1]
  sys.exit(
    f"{sys.executable} has no {error.name}: it is not the environment of tis_jax. From "
    f"{root},\n"
    "  make setup               makes it, once, in .venv\n"
    "  . .venv/bin/activate     enters it; the same command then works"
  )
