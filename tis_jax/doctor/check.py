"""`tis check`: holds a dump to limits, for continuous integration."""

import argparse
import json
import sys
from collections.abc import Sequence

from tis_jax.doctor.diagnosis import diagnose
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.evidence import Evidence, Scale
from tis_jax.doctor.reading import read

FAILED = 1
"""Exit code where a limit is passed, or a fault is found."""
UNREADABLE = 2
"""Exit code where the file cannot be read."""

_LIMITS = {
  "max_k3": ("k3", "E[r - 1 - log r], nats a token"),
  "max_abs": ("mean_abs", "E|d|, nats a token"),
  "max_gap": ("max_abs", "the largest |d|, nats"),
  "max_outside": ("outside", "share of ratios outside [0.9, 1.1]"),
  "min_ess": ("ess", "effective sample size of uncut token weights, a share"),
  "min_ess_sequence": ("ess_sequence", "the same of products over rows"),
  "min_correlation": ("correlation", "of both sides' log-probs"),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a line for each limit; exits with 1 if one is passed."""
  given = _parser().parse_args(sys.argv[1:] if argv is None else argv)
  named = {name: getattr(given, name) for name in _LIMITS}
  limits = {name: limit for name, limit in named.items() if limit is not None}
  if not limits and not given.no_fault:
    _parser().error(f"give a limit ({', '.join(map(_flag, _LIMITS))}) or --no-fault")
  try:
    dump = read(given.file)
    passed = passes(Evidence(dump).scale, limits)
    verdict = diagnose(dump, resamples=0).verdict if given.no_fault else None
  except DumpError as error:
    print(f"tis check: {error}", file=sys.stderr)
    sys.exit(UNREADABLE)
  failed = [name for name, found in passed.items() if not found["passed"]]
  sick = verdict not in (None, "healthy", "numerics", "staleness")
  if given.json:
    print(
      json.dumps(
        {"passed": not failed and not sick, "limits": passed, "verdict": verdict}
      )
    )
  else:
    for name, found in passed.items():
      word = "ok    " if found["passed"] else "FAILED"
      print(f"{word} {_flag(name)} {found['limit']:g}: {found['value']:.4g}")
    if verdict is not None:
      print(f"{'FAILED' if sick else 'ok    '} --no-fault: {verdict}")
  sys.exit(FAILED if failed or sick else 0)


def passes(scale: Scale, limits: dict[str, float]) -> dict[str, dict]:
  """Which limits a dump keeps to; a value that is not a number keeps to none.

  >>> scale = Scale(9, 3, 0.02, 0.1, 0.0, 4e-4, 1.0, 0.999, 0.99, 0.999, 0.01)
  >>> passes(scale, {"max_k3": 1e-3, "min_ess": 0.9999})["min_ess"]
  {'value': 0.999, 'limit': 0.9999, 'passed': False}
  """
  found = {}
  for name, limit in limits.items():
    value = getattr(scale, _LIMITS[name][0])
    kept = value <= limit if name.startswith("max") else value >= limit
    found[name] = {"value": value, "limit": limit, "passed": bool(kept)}
  return found


def _flag(name: str) -> str:
  return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="tis check",
    description=__doc__,
    epilog="Exit codes: 0 all kept, 1 one passed or a fault found, 2 not readable.",
  )
  parser.add_argument("file", metavar="FILE", help="a dump, see tis doctor --help")
  for name, (_, means) in _LIMITS.items():
    parser.add_argument(_flag(name), type=float, metavar="LIMIT", help=means)
  parser.add_argument(
    "--no-fault",
    action="store_true",
    help="the verdict must be healthy, numerics or staleness",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object instead")
  return parser
