"""`tis replay`: what each of several corrections would have done to a saved batch."""

import argparse
import json
import sys
from collections.abc import Sequence

from tis_jax.doctor.command import UNREADABLE
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.reading import read
from tis_jax.doctor.replaying import Replayed, replay

_EPILOG = """\
A correction is written as a call: "veto(1e-4) | truncate(2.0)",
"reject(1.01, 0.99, level='geometric')", or a preset, "icepop(5.0, 0.5)". Stages are
joined by bars. docs/papers.md has the presets, docs/api/corrections.md the stages.
"""
_COLUMNS = {
  "ess": "ess",
  "gradient_scale": "scale",
  "dropped_tokens": "drop tok",
  "dropped_sequences": "drop seq",
  "largest": "largest",
  "gradient_norm": "norm",
  "gradient_cosine": "cosine",
}


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a row a correction; exits with 2 where the file or a line cannot be read."""
  given = _parser().parse_args(sys.argv[1:] if argv is None else argv)
  try:
    found = replay(read(given.file), ["none", *given.correct], given.model)
  except (DumpError, ValueError) as error:
    print(f"tis replay: {error}", file=sys.stderr)
    sys.exit(UNREADABLE)
  if given.json:
    print(json.dumps([row.to_json() for row in found], indent=2, allow_nan=False))
  else:
    print(table(found))


def table(found: Sequence[Replayed]) -> str:
  """A row a correction; what was not measured has no column."""
  rows = [row.to_json() for row in found]
  shown = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
  width = max(len(row["name"]) for row in rows)
  lines = [" " * width + "".join(f"  {_COLUMNS[name]:>9}" for name in shown)]
  for row in rows:
    cells = "".join(f"  {_cell(row.get(name)):>9}" for name in shown)
    lines.append(f"{row['name']:<{width}}{cells}")
  return "\n".join(lines)


def _cell(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="tis replay",
    description=__doc__,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("file", metavar="FILE", help="a dump, see tis doctor --help")
  parser.add_argument(
    "--correct",
    nargs="+",
    required=True,
    metavar="CHAIN",
    help="corrections to stand beside none",
  )
  parser.add_argument(
    "--model",
    default="",
    metavar="SOURCE",
    help="the model whose gradient is compared: builtin:arithmetic, a .gguf file or a "
    "directory of safetensors (needs the train extra)",
  )
  parser.add_argument("--json", action="store_true", help="one JSON list instead")
  return parser
