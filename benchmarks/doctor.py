"""How often the doctor is right: confusion matrix and false alarms on held-out seeds.

  python benchmarks/doctor_samples.py runs/doctor --arithmetic URL --smollm2
  python benchmarks/doctor.py runs/doctor --pages docs/doctor/engines
  python benchmarks/doctor.py --laws 12 --healthy 100 --batches runs/quickstart
  python benchmarks/doctor.py runs/doctor --tuning    # the seeds thresholds were set on

Batches of real engines (`benchmarks/doctor_samples.py`, or anybody's npz files with the
same arrays) go to the doctor as they are, and with every fault of `tis_jax.lab.faults`
at several strengths, cut into dumps of `ROWS` rows. Thresholds were set on the batches
of even seeds; what is published is of the odd ones. A dump is shown twice: *full*, with
ids, versions and the sampler's dtype, and *alone*, two arrays and a mask. `--laws` adds
dumps of `tis_jax.lab.drawn`, exact laws over a vocabulary with noise of the size of
fp32, bf16 and int8; `--batches` the batches that workdirs of `tis train` kept, with the
faults that need no other law.
"""

import argparse
import csv
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from doctor_tables import alarms, by_strength, confusion, summary

from tis_jax import doctor
from tis_jax.lab import drawn, faults
from tis_jax.lab.faults import Sampled

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "doctor"
RUN_SEEDS = 12
"""Dumps that are cut out of the batch of a run."""
ROWS = {"arithmetic": 256, "smollm2": 16, "law": 48}
"""Rows of a dump: about 1,000 tokens."""

STRENGTHS: dict[str, tuple[tuple[float, bool], ...]] = {
  "shifted_tokens": ((0.1, False), (0.3, True), (1.0, True)),
  "missing_end": ((0.05, False), (0.3, True), (1.0, True)),
  "wrong_end": ((0.1, False), (0.3, True), (1.0, True)),
  "zero_filled": ((0.005, False), (0.05, True), (0.3, True)),
  "padding_counted": ((0.05, False), (0.3, True), (1.0, True)),
  "padding_of_zeros": ((0.05, False), (0.3, True), (1.0, True)),
  "prompt_in_mask": ((1, True), (4, True)),
  "retokenised": ((0.1, False), (0.5, True), (1.0, True)),
  "replaced_tokens": ((0.005, False), (0.02, True)),
  "probabilities": ((1, True), (2, True)),
}
"""Of the faults that any batch can have: a strength, and whether it is a strong one."""

MOVED = 0.01
"""Nats, root mean square, that a fault moves log-probs by at least if it matters."""
OTHERS = 0.01
"""The share by which it changes the number of tokens that train, otherwise."""

LONG = ("shifted_tokens", "retokenised")
"""Faults that rows of four tokens do not show unless all have them."""


class Case(NamedTuple):
  """A dump whose fault is known.

  Attributes:
    source: policy, engine and dtype.
    fault: its name, or "healthy".
    strength: of it.
    strong: whether it is among the strengths that are asked for.
    expected: the verdicts that are right.
    batch: the dump.
    dtype: of the sampler.
    effect: of the fault on this very dump, against that of the engine without it; it
      matters from 1 on.
  """

  source: str
  fault: str
  strength: float
  strong: bool
  expected: tuple[str, ...]
  batch: Sampled
  dtype: str
  effect: float


def gap(batch: Sampled) -> float:
  """Root mean square of the learner's log-probs less the sampler's, nats."""
  d = (batch.old_logp - batch.sampler_logp)[batch.mask]
  return float(np.sqrt((np.clip(d, -20, 20) ** 2).mean()))


def effect(well: Sampled, sick: Sampled) -> float:
  """What a fault does to a dump, over what it takes to matter.

  It matters if it adds a hundredth to the tokens that train, or moves the log-probs of
  one side by 0.01 nats (root mean square) and by the healthy dump's own gap: what
  moves them by less is lost in what the sampler's dtype does.
  """
  held = well.mask.sum()
  more = abs(sick.mask.sum() - held) / held / OTHERS
  if sick.mask.shape != well.mask.shape:
    return float(more)
  square = lambda a, b: (np.clip((a - b)[well.mask], -20, 20) ** 2).mean()
  moved = max(
    square(well.old_logp, sick.old_logp), square(well.sampler_logp, sick.sampler_logp)
  )
  return float(max(more, np.sqrt(moved) / max(MOVED, gap(well))))


def added(usual: float, sick: Sampled) -> float:
  """The same of params that sample other tokens, by the healthy dumps' mean gap.

  Squares of independent gaps add up.
  """
  square = max(gap(sick) ** 2 - usual**2, 0.0)
  return float(np.sqrt(square) / max(MOVED, usual))


def load(path: Path) -> tuple[dict[str, Any], Sampled]:
  """A file of `doctor_samples.py`: what it says of itself, and the batch."""
  with np.load(path) as file:
    arrays = dict(file)
  said = {name: x.item() for name, x in arrays.items() if x.ndim == 0}
  temperatures = arrays["temperatures"].round(3).tolist()
  at = dict(zip(temperatures, arrays["learner_at"].astype(np.float64), strict=True))
  behind = int(said.get("behind", 0))
  mask = arrays["mask"]
  batch = Sampled(
    old_logp=at[round(said["temperature"], 3)],
    sampler_logp=arrays["sampler_logp"].astype(np.float64),
    mask=mask,
    tokens=arrays["tokens"],
    versions=np.full(mask.shape, 100 - behind),
    learner_version=100,
    temperature=said["temperature"],
    at=at,
    kept_mass=arrays.get("kept_mass"),
  )
  return said, batch


def source(said: dict[str, Any]) -> str:
  """Policy, engine and dtype of a batch."""
  return " ".join((said["policy"], *said.get("engine", "").split(), said["dtype"]))


def usual_gaps(batches: list) -> dict[tuple[str, float], float]:
  """The mean gap of the batches without a fault, by source and temperature."""
  found = defaultdict(list)
  for said, batch in batches:
    if said["kind"] in ("fresh", "healthy"):
      found[source(said), said["temperature"]].append(gap(batch))
  return {key: float(np.mean(gaps)) for key, gaps in found.items()}


def cases(said: dict[str, Any], whole: Sampled, usual: float) -> Iterator[Case]:
  """Every dump that is made of a batch; `usual` is the gap without a fault."""
  rows = ROWS[said["policy"]]
  for start in range(0, len(whole.mask) - rows + 1, rows):
    seed = 1000 * said["seed"] + start
    cut = np.random.default_rng(seed).permutation(len(whole.mask))[:rows]
    yield from _cases(said, whole.rows(cut), usual, seed)


def _cases(said, batch: Sampled, usual: float, seed: int) -> Iterator[Case]:
  kind, dtype = said["kind"], said["dtype"]
  name = source(said)

  def case(fault, strength, strong, expected, sick, does=None):
    does = effect(batch, sick) if does is None else does
    return Case(name, fault, strength, strong, expected, sick, dtype, does)

  if kind in ("fresh", "healthy"):
    yield case("healthy", batch.temperature, True, ("healthy", "numerics"), batch, 1.0)
  if kind == "fresh":
    for fault, strengths in STRENGTHS.items():
      for strength, strong in strengths:
        short = said["policy"] == "arithmetic" and fault in LONG and strength < 1
        if short or (fault == "retokenised" and said["policy"] == "arithmetic"):
          continue
        sick = faults.inject(fault, batch, strength, seed)
        yield case(fault, strength, strong, (faults.VERDICTS[fault],), sick)
    if not batch.at:
      return
    if batch.temperature != 1:
      # The learner leaves the temperature out (Tunix); the engine does (vLLM's raw).
      sick = faults.inject("temperature", batch, 1.0, seed)
      yield case("temperature", batch.temperature, True, ("temperature",), sick)
      sick = faults.inject("unprocessed", batch, 1.0, seed)
      yield case("unprocessed", batch.temperature, True, ("unprocessed",), sick)
    else:
      for strength in (t for t in batch.at if t in (0.7, 0.9, 1.2)):
        sick = faults.inject("temperature", batch, strength, seed)
        yield case("temperature", strength, True, ("temperature",), sick)
  elif kind in ("nucleus", "topk"):
    sick = faults.inject("support", batch, 1.0, seed)
    strong = kind == "nucleus" and said["strength"] < 0.9
    yield case(f"support {kind}", said["strength"], strong, ("support",), sick)
  elif kind == "behind":
    expected = ("staleness", "numerics", "healthy")
    yield case("staleness", said["behind"], True, expected, batch, 1.0)
  elif kind in ("stale", "head", "half", "other"):
    fault = {"other": "other_model"}.get(kind, "stale_weights")
    # What a run started from is older params to one, and another model to the next.
    also = ("stale_weights",) if said["name"] == "other-base" else ()
    does = added(usual, batch)
    yield case(f"{fault} {said['name']}", 1.0, True, (fault, *also), batch, does)


def run_batches(paths: list[Path], seeds: int, tuning: bool) -> Iterator:
  """Random rows of the batch that each run has left, one dump a seed."""
  for path in paths:
    dump = doctor.read(path)
    batch = Sampled(
      old_logp=np.nan_to_num(dump.old_logp),
      sampler_logp=np.nan_to_num(dump.sampler_logp),
      mask=dump.mask,
      tokens=dump.tokens,
      versions=dump.versions,
      learner_version=dump.learner_version,
      temperature=dump.temperature,
    )
    said = {"policy": "arithmetic", "kind": "fresh", "dtype": dump.sampler_dtype}
    said |= {"temperature": dump.temperature, "name": "run"}
    for seed in range(int(tuning) ^ 1, seeds, 2):
      rows = np.random.default_rng(seed).permutation(len(dump.mask))
      yield said | {"seed": seed}, batch.rows(rows[: ROWS["arithmetic"]])


LAWS = {"float32": 1e-5, "bfloat16": 0.045, "int8": 0.1}
"""Noise in the logits that makes gaps as large as SmolLM2's in the atlas."""


def law_batches(seeds: int, tuning: bool) -> Iterator[tuple[dict[str, Any], Sampled]]:
  """Batches of exact laws, as `load` gives those of engines."""
  for seed in range(int(tuning) ^ 1, seeds, 2):
    for dtype, noise in LAWS.items():
      for temperature in (1.0, 0.7):
        said = {"kind": "fresh", "temperature": temperature}
        yield _law(said, dtype, seed, drawn(noise, temperature=temperature, seed=seed))
      for top_p in (0.8, 0.95):
        said = {"kind": "nucleus", "strength": top_p, "temperature": 1.0}
        yield _law(said, dtype, seed, drawn(noise, top_p=top_p, seed=seed))
      batch = faults.inject("other_model", drawn(noise, seed=seed), 1.0)
      yield _law({"kind": "other", "temperature": 1.0}, dtype, seed, batch)
    stale = drawn(0.35, seed=seed)
    behind = dataclasses.replace(stale, versions=stale.versions - 4)
    said = {"kind": "behind", "behind": 4, "temperature": 1.0}
    yield _law(said, "bfloat16", seed, behind)
    sick = faults.inject("stale_weights", behind, 1.0)
    yield _law({"kind": "stale", "temperature": 1.0}, "bfloat16", seed, sick)


def healthy_batches(seeds: int, tuning: bool) -> Iterator:
  """Exact laws without a fault, of seeds of their own: for the rate of false alarms."""
  for seed in range(10_000 + (int(tuning) ^ 1), 10_000 + seeds, 2):
    for dtype, noise in LAWS.items():
      for temperature in (1.0, 0.7):
        said = {"kind": "healthy", "temperature": temperature}
        yield _law(said, dtype, seed, drawn(noise, temperature=temperature, seed=seed))


def _law(said, dtype: str, seed: int, batch: Sampled):
  told = {"policy": "law", "dtype": dtype, "seed": seed, "name": said["kind"]}
  return said | told, batch


def dump_of(case: Case, view: str) -> doctor.Dump:
  """What the doctor is shown."""
  batch = case.batch
  more: dict[str, Any] = {}
  if view == "full":
    more = {
      "tokens": batch.tokens,
      "versions": batch.versions,
      "learner_version": batch.learner_version,
      "sampler_dtype": case.dtype,
      "temperature": batch.temperature,
    }
  return doctor.from_arrays(batch.old_logp, batch.sampler_logp, batch.mask, **more)


def engine_batches(folder: Path, tuning: bool) -> Iterator:
  """Those of a folder, of even seeds or of odd ones."""
  for path in sorted(folder.glob("*.npz")):
    said, batch = load(path)
    said["name"] = path.stem.split("_")[1]
    if (said["seed"] % 2 == 0) == tuning:
      yield said, batch


def named(case: Case, report: doctor.Report) -> bool:
  """Whether what is right is among the findings, whichever of them is the verdict."""
  return any(x.found and x.kind in case.expected for x in report.findings)


def measured(batches: Iterator) -> list[dict[str, Any]]:
  """A row for every dump and view."""
  found, held = [], list(batches)
  usual = usual_gaps(held)
  for said, batch in held:
    for case in cases(said, batch, usual.get((source(said), said["temperature"]), 0.0)):
      for view in ("full", "alone"):
        report = doctor.diagnose(dump_of(case, view), resamples=0)
        found.append(
          {
            "source": case.source,
            "view": view,
            "fault": case.fault,
            "strength": case.strength,
            "strong": int(case.strong),
            "effect": float(f"{case.effect:.3g}"),
            "matters": int(case.strong and case.effect >= 1),
            "expected": case.expected[0],
            "verdict": report.verdict,
            "right": int(report.verdict in case.expected),
            "named": int(report.verdict in case.expected or named(case, report)),
            "score": round(report.finding.score, 3),
            "mean_abs": float(f"{report.scale.mean_abs:.3g}"),
            "k3": float(f"{report.scale.k3:.3g}"),
          }
        )
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("folder", nargs="?", type=Path, help="of doctor_samples.py")
  parser.add_argument("--laws", type=int, default=0, help="seeds of exact laws (0)")
  parser.add_argument(
    "--healthy", type=int, default=0, help="seeds of laws without a fault (0)"
  )
  parser.add_argument(
    "--batches", nargs="+", default=[], type=Path, help="workdirs of tis train"
  )
  parser.add_argument(
    "--tuning", action="store_true", help="print those of even seeds; write nothing"
  )
  parser.add_argument("--pages", type=Path, default=PAGES, help="for the tables")
  given = parser.parse_args()
  rows = measured(law_batches(given.laws, given.tuning))
  rows += measured(healthy_batches(given.healthy, given.tuning))
  rows += measured(run_batches(given.batches, 2 * RUN_SEEDS, given.tuning))
  if given.folder:
    rows += measured(engine_batches(given.folder, given.tuning))
  if not rows:
    raise SystemExit("no batch of these seeds: give a folder, or --laws")
  parts = {
    "summary": summary(rows),
    "false_alarms": alarms(rows),
    "strengths": by_strength(rows),
    "confusion_full": confusion(rows, "full"),
    "confusion_alone": confusion(rows, "alone"),
  }
  for name, text in parts.items():
    print(f"{name}\n{text}")
    if not given.tuning:
      given.pages.mkdir(parents=True, exist_ok=True)
      (given.pages / f"{name}.md").write_text(text)
  if not given.tuning:
    with (given.pages / "dumps.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)


if __name__ == "__main__":
  main()
