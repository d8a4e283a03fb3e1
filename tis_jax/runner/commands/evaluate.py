"""`tis evaluate`: pass@k and maj@k of a run's checkpoint or published params."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tis_jax.engines.native import PRECISIONS
from tis_jax.runner import (
  EvaluationPlan,
  ExpectedError,
  evaluate_run,
  evaluate_store,
  logs,
)
from tis_jax.runner.config import refusing

_EPILOG = """\
An interval is that of the mean over prompts, 95%, by Student's t; pass@k is the
unbiased estimate from all samples, maj@k the vote of k of them, over blocks of k.
Differences are paired by prompt.
"""


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog="tis evaluate", description=__doc__, epilog=_EPILOG
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--workdir", type=Path, help="of the run: its newest checkpoint")
  source.add_argument("--store", help="URL of the run's store: a published version")
  parser.add_argument("--version", type=int, help="of the store's (newest)")
  parser.add_argument(
    "--base", action="store_true", help="evaluate what the run started from instead"
  )
  parser.add_argument("--split", default="test", help="train or test (test)")
  parser.add_argument(
    "--prompts", type=int, default=0, help="of the split; 0, the default, for all"
  )
  parser.add_argument("--samples", type=int, default=8, help="answers a prompt (8)")
  parser.add_argument(
    "--k", type=int, nargs="+", metavar="K", help="of pass@k and maj@k (1, samples)"
  )
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="of sampling (1); 0 is greedy"
  )
  parser.add_argument(
    "--passes", type=float, default=1.0, help="the least reward that is right (1)"
  )
  parser.add_argument(
    "--precision",
    nargs="+",
    default=["float32"],
    metavar="PRECISION",
    help=f"one or several of {', '.join(PRECISIONS)}, set side by side (float32)",
  )
  parser.add_argument(
    "--max_new_tokens", type=int, default=0, help="of an answer; by default the run's"
  )
  parser.add_argument(
    "--rows", type=int, default=1024, help="answers generated at once (1024)"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="for the numbers")
  given = parser.parse_args(argv)
  if given.base and not given.workdir:
    parser.error("--base goes with --workdir")
  if given.version is not None and not given.store:
    parser.error("--version goes with --store")
  try:
    with refusing():
      plan = EvaluationPlan(
        split=given.split,
        prompts=given.prompts,
        samples=given.samples,
        ks=tuple(given.k or sorted({1, given.samples})),
        temperature=given.temperature,
        passes=given.passes,
        precisions=tuple(given.precision),
        max_new_tokens=given.max_new_tokens,
        rows=given.rows,
        seed=given.seed,
      )
    if given.workdir:
      report = evaluate_run(given.workdir, plan, base=given.base)
    else:
      report = evaluate_store(given.store, plan, given.version)
  except (*ExpectedError, FileNotFoundError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  logs.say(report.as_text())
  if given.json:
    given.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
