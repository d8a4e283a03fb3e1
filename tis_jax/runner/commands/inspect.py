"""`tis inspect`: a look at a run through its store; writes nothing there."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tis_jax.rollouts import BadRolloutError, Rollout, decode
from tis_jax.runner import logs
from tis_jax.runner.transcript import score_record, transcript
from tis_jax.store import Store, StoreError
from tis_jax.store.notes import check_writer
from tis_jax.store.overview import overview

_CLEAR = "\033[2J\033[H"


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="tis inspect", description=__doc__)
  parser.add_argument("store", help="URL of the run's store")
  parser.add_argument(
    "--follow",
    nargs="?",
    type=float,
    const=2.0,
    metavar="SECONDS",
    help="look again every so often (2), until the run ends",
  )
  parser.add_argument(
    "--errors", type=int, default=5, help="records set aside to tell of (5)"
  )
  parser.add_argument(
    "--record",
    metavar="WRITER/SEQ",
    help="show this one: prompts and responses, coloured by learner / sampler",
  )
  parser.add_argument(
    "--rows", type=int, nargs="+", default=[], help="of the record; all if not said"
  )
  parser.add_argument(
    "--npz", type=Path, metavar="FILE", help="write the record's arrays there instead"
  )
  known = parser.parse_args(argv)
  if (known.npz or known.rows) and not known.record:
    parser.error("--npz and --rows go with --record")
  if known.follow is not None and known.follow <= 0:
    parser.error("--follow takes seconds, above 0")
  try:
    store = Store.open(known.store)
    if known.record:
      _show_record(store, known)
    else:
      _show_run(store, known)
  except (StoreError, BadRolloutError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  except KeyboardInterrupt:
    return


def _show_run(store: Store, known: argparse.Namespace) -> None:
  while True:
    seen = overview(store, known.errors)
    if known.follow is not None and sys.stdout.isatty():
      logs.say(_CLEAR)
    logs.say(seen.as_text())
    if known.follow is None or seen.stopped:
      return
    time.sleep(known.follow)
    logs.say()
    store = Store.open(known.store)  # The learner may be another by now.


def _show_record(store: Store, known: argparse.Namespace) -> None:
  rollout = _record(store, known.record)
  if known.npz:
    header = json.dumps(dataclasses.asdict(rollout.header))
    arrays: dict[str, Any] = {**rollout.arrays(), "header": np.array(header)}
    np.savez(known.npz, **arrays)
    logs.say(f"{known.npz}: {', '.join(rollout.arrays())}, header")
    return
  beyond = [row for row in known.rows if not 0 <= row < len(rollout.tokens)]
  if beyond:
    raise ValueError(f"rows {beyond}: the record has 0 to {len(rollout.tokens) - 1}")
  colour = sys.stdout.isatty()
  logs.say(transcript(score_record(store, rollout), known.rows, colour))


def _record(store: Store, place: str) -> Rollout:
  """Where it waits, or where it was set aside."""
  writer, _, seq = place.rpartition("/")
  if not seq.isdecimal():
    raise ValueError(f"{place!r} is no WRITER/SEQ, such as local0/12")
  for kind in ("rollouts", "quarantine"):
    data = store.kv.get(f"{kind}/{check_writer(writer)}/{int(seq):010d}").value
    if data is not None:
      return decode(data)
  raise StoreError(
    f"store {store.url} has no record {place}: it is not written yet, or is trained on "
    "and deleted (tis inspect URL says which wait)"
  )
