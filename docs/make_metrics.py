"""Writes docs/metrics.md: python docs/make_metrics.py

What a metric is stands here; its range is measured, in `docs/metrics.csv`
(`tis_jax.runner.study`), by sampler precision and staleness.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

DOCS = Path(__file__).parent


class Metric(NamedTuple):
  """A row of the page: what it is, and what a number out of range says."""

  formula: str
  outside: str = ""


GROUPS: dict[str, dict[str, Metric]] = {
  "The gap, by token": {
    "mismatch/k3": Metric(
      "E[r - 1 - log r], an estimate of KL(sampler, learner), nats a token",
      "The number to watch. At step 0, or at staleness 0, it is numerics alone: a "
      "value of stale weights there is a bug of weight sync. Growing over a run: "
      "staleness or a policy that has lost its entropy.",
    ),
    "mismatch/k3_reverse": Metric(
      "E[r log r - r + 1], of KL(learner, sampler)",
      "Far above `k3`: the learner likes tokens that the sampler hardly draws; few "
      "samples carry the weight.",
    ),
    "mismatch/k1": Metric(
      "E[-log r], the same KL(sampler, learner), signed and noisier",
      "Clearly negative: the log-probs are of another temperature, or renormalised.",
    ),
    "mismatch/k1_reverse": Metric("E[r log r], the same of the reverse"),
    "mismatch/abs_log_ratio": Metric(
      "E abs(log r), nats",
      "Grows with the square root of `k3`; a floor that does not move with staleness "
      "is numerics.",
    ),
    "mismatch/chi2_token": Metric(
      "E[r²] - 1",
      "1 / (1 + χ²) is the share of tokens that a weight would leave.",
    ),
    "mismatch/log_ratio_max": Metric(
      "the largest log r",
      "Above 9 (a factor of 1e4) it is a defect: another chat template, a stop token, "
      "a shifted log-prob.",
    ),
    "mismatch/log_ratio_min": Metric("the smallest log r", "Below -9: likewise."),
    "mismatch/catastrophic_tokens": Metric(
      "the share of tokens with abs(log r) above log 1e4",
      "Anything but 0: look at those tokens before any correction.",
    ),
    "tokens/missing": Metric(
      "the share of tokens without a sampler log-prob",
      "Their weight is 1. Anything but 0 is to be explained by the engine.",
    ),
    "tokens/count": Metric("tokens that train before any rejection"),
  },
  "The gap, by sequence": {
    "mismatch/chi2_sequence": Metric(
      "E[(prod r)²] - 1",
      "Above 1, whole-sequence weights throw half of the batch away.",
    ),
    "mismatch/ess_sequence": Metric(
      "(Σprod r)² / (N Σ(prod r)²)",
      "What uncut sequence weights would leave. Below 0.5 take a cap, a shorter level "
      "or a mask.",
    ),
    "mismatch/sequence_log_ratio": Metric(
      "E[Σ log r]", "Falls in proportion to length x `k3`."
    ),
    "mismatch/log_ppl_gap": Metric(
      "E[mean log r] of a sequence",
      "Away from 0 with a small `k3`: one side's log-probs are off by a constant.",
    ),
    "mismatch/log_ppl_gap_abs": Metric(
      "E abs(mean log r)",
      "What geometric bounds are measured in: a bound of 1.01 is 0.01.",
    ),
    "mismatch/log_ppl_gap_max": Metric("the largest"),
    "mismatch/log_ppl_gap_min": Metric("the smallest"),
    "mismatch/ppl_ratio": Metric("E[exp mean log r]"),
    "mismatch/ppl_learner": Metric("E[exp(-mean log π)], of a sequence"),
    "mismatch/ppl_sampler": Metric("E[exp(-mean log μ)]"),
    "mismatch/log_ppl_learner": Metric("E[-mean log π]"),
    "mismatch/log_ppl_sampler": Metric("E[-mean log μ]"),
    "sequences/count": Metric("sequences that hold a token"),
  },
  "What the correction did": {
    "weight/raw_mean": Metric(
      "E[r], at the level of the weight",
      "1 in expectation. Away from 1 by more than its standard error: the two sides "
      "score different laws (temperature, top-p), or the tokens are not the sampler's.",
    ),
    "weight/raw_max": Metric("the largest ratio"),
    "weight/raw_min": Metric("the smallest ratio"),
    "weight/ess_raw": Metric(
      "(Σr)² / (N Σr²)", "What importance sampling without a cap would have left."
    ),
    "weight/mean": Metric("E[w] of the tokens that train"),
    "weight/max": Metric("the largest weight", "The cap, where it was reached."),
    "weight/min": Metric("the smallest"),
    "weight/ess": Metric(
      "(Σw)² / (N Σw²)",
      "Below 0.9: the gradient is that of fewer samples than you pay for; lower the "
      "cap, or the staleness.",
    ),
    "weight/gradient_scale": Metric(
      "Σw / tokens before the correction",
      "Far below 1, the correction is a cut of the learning rate.",
    ),
    "rejected/tokens": Metric(
      "the share of tokens out of the mask",
      "Above a few percent, a mask decides what is learnt.",
    ),
    "rejected/sequences": Metric("the share of sequences rejected whole"),
    "rejected/positive_sequences": Metric(
      "the same of those with a reward above 0",
      "Other than `other_sequences`: the mask has a taste of its own.",
    ),
    "rejected/other_sequences": Metric("the same of the rest"),
  },
  "Rewards": {
    "reward/mean": Metric("as the sampler earned it"),
    "reward/sampler": Metric("the same, over the sequences that hold a token"),
    "reward/learner_weighted": Metric("E[prod r R], unbiased for the learner's reward"),
    "reward/learner_normalized": Metric(
      "Σprod r R / Σprod r",
      "The learner's reward, less noisy. Below `reward/mean`: the policy that you log "
      "is not the one that you train.",
    ),
    "reward/shaped": Metric("after overlong penalty and KL"),
    "advantage/abs": Metric("E abs(A)"),
    "groups/count": Metric("prompt groups in the batch"),
    "groups/without_signal": Metric(
      "the share of groups whose rewards are all alike",
      "Near 1 there is nothing to learn: another mix of prompts, or dynamic sampling.",
    ),
    "response/length": Metric("tokens of a response"),
    "response/length_max": Metric("of the longest"),
    "response/truncated": Metric("the share that ran into the limit"),
    "response/aborted": Metric("the share that its engine gave up; it does not train"),
  },
  "Time and versions": {
    "staleness/mean": Metric(
      "versions between the params that sampled a token and those that it trains",
      "At its bound all the time, the sampler is the faster side.",
    ),
    "staleness/max": Metric("the largest"),
    "time/wait": Metric(
      "seconds a step that the learner waited for rollouts or a publication"
    ),
    "time/update": Metric("seconds of an update"),
    "time/publish": Metric("seconds of a publication, beside the steps"),
    "guard/alarms": Metric(
      "metrics that have left the range that `guard` gives them",
      "Above 0: the run's log says which, and since when.",
    ),
  },
  "The update": {
    "loss/total": Metric("what is differentiated"),
    "loss/policy": Metric("the policy's part of it"),
    "policy/entropy": Metric(
      "E[-Σ π log π], nats a token",
      "Falling to 0: the policy has stopped exploring; growing without bound: it is "
      "coming apart.",
    ),
    "policy/ratio": Metric(
      "E[exp(log π - log π_old)], the update's own ratio",
      "1 in the first update of a batch, whatever the sampler did; later it is drift.",
    ),
    "policy/ratio_max": Metric("the largest"),
    "policy/ratio_min": Metric("the smallest"),
    "policy/drift_k1": Metric("KL(π_old, π) by k1, nats a token"),
    "policy/drift_k3": Metric(
      "the same by k3", "Above 0.01: fewer epochs, or a smaller rate."
    ),
    "policy/clipped": Metric(
      "the share of tokens that the loss's clip took the gradient of",
      "0 with one update a batch. Above 0.2 much of the batch is not learnt from.",
    ),
    "policy/dual_clipped": Metric("the same of the dual clip"),
    "optimizer/grad_norm": Metric(
      "of the mean gradient, before clipping",
      "A jump of ten times the median, with `weight/max` at its cap: a few tokens "
      "carry the step.",
    ),
    "optimizer/grad_norm_max": Metric("the largest of the step's updates"),
    "update/skipped": Metric(
      "updates that were not finite", "The run has stopped; it saved the batch."
    ),
  },
}

REGIMES = {
  "fp32 fresh": "token_tis_max_staleness-0_precision-float32",
  "bf16 fresh": "token_tis_max_staleness-0",
  "int8 fresh": "token_tis_max_staleness-0_precision-int8",
  "int4 fresh": "token_tis_max_staleness-0_precision-int4",
  "bf16 1 behind": "token_tis_max_staleness-1",
  "bf16 4 behind": "token_tis_max_staleness-4",
  "bf16 8 behind": "token_tis",
  "bf16 16 behind": "token_tis_max_staleness-16",
}
"""Columns of ranges, and the runs they are of: names in the study, without the seed."""

PAGE = """# Metrics

<!-- Made by docs/make_metrics.py; do not edit. -->

Every metric that a run logs, with what it is and what a number out of range says. r is
the ratio π/μ of learner to sampler at a token, w the weight that a correction made of
it, E the mean over tokens of the batch (or over sequences, where a row says so), before
any rejection unless it says otherwise. Metrics pool exactly over micro-batches, shards
and steps (`tis.merge`, `tis.pool`); `NAME/std` and `NAME/stderr` are their spread and
standard error. A chain's stages log under their own names (`truncate/high`,
`reject/sequences_low`, ...), which [Corrections](api/corrections.md) has.

Ranges are the median and, in brackets, the 5th and 95th percentile over the steps of
{runs} runs of the [study](study/results.md), token TIS at 2.0, each step a batch of 512
short answers of a 0.66M-parameter policy, by the sampler's precision and how many
versions it was behind. What a fresh sampler shows is numerics alone. Longer answers and
larger models move them: take the ratio between regimes from here, and the level from
your own first steps ([SmolLM2's](atlas.md) are ten times these in bf16).

{groups}
"""


def ranges(folder: Path, steps_from: int = 20) -> str:
  """The CSV of percentiles, from the workdirs of runs: a row a metric and regime."""
  from tis_jax.runner.figures import read_columns

  names = [name for metrics in GROUPS.values() for name in metrics]
  lines = ["regime,runs,metric,p5,p50,p95\n"]
  for regime, run in REGIMES.items():
    found = [
      read_columns(path / "metrics.jsonl")
      for path in sorted(folder.glob(f"{run}_seed-*"))
      if (path / "summary.json").exists()
    ]
    for name in names:
      values = [
        columns[name][(columns["step"] > steps_from) & ~np.isnan(columns[name])]
        for columns in found
        if name in columns
      ]
      if values:
        low, middle, high = np.percentile(np.concatenate(values), (5, 50, 95))
        row = f"{low:.3g},{middle:.3g},{high:.3g}"
        lines.append(f"{regime},{len(found)},{name},{row}\n")
  return "".join(lines)


def page(measured: str) -> str:
  """What stands in docs/metrics.md."""
  rows = list(csv.DictReader(measured.splitlines()))
  at = {(row["regime"], row["metric"]): row for row in rows}
  regimes = [x for x in REGIMES if any(row["regime"] == x for row in rows)]
  runs = sum({row["regime"]: int(row["runs"]) for row in rows}.values())
  groups = []
  for title, metrics in GROUPS.items():
    lines = [f"## {title}\n", "| metric | is | out of range |", "|---|---|---|"]
    lines += [f"| `{x}` | {m.formula} | {m.outside} |" for x, m in metrics.items()]
    shown = [x for x in metrics if any((regime, x) in at for regime in regimes)]
    lines += ["", f"| | {' | '.join(regimes)} |", "|---|" + "---|" * len(regimes)]
    for name in shown:
      cells = [_cell(at.get((regime, name))) for regime in regimes]
      lines.append(f"| `{name}` | {' | '.join(cells)} |")
    groups.append("\n".join(lines))
  return PAGE.format(groups="\n\n".join(groups), runs=runs)


def _cell(row: Mapping[str, str] | None) -> str:
  if row is None:
    return ""
  if row["p5"] == row["p95"]:
    return row["p50"]
  return f"{row['p50']} ({row['p5']} to {row['p95']})"


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=Path, help="measure the ranges anew, of a study")
  known = parser.parse_args(argv)
  path = DOCS / "metrics.csv"
  if known.runs:
    path.write_text(ranges(known.runs))
  (DOCS / "metrics.md").write_text(page(path.read_text()))


if __name__ == "__main__":
  main()
