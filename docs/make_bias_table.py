"""Writes docs/bias_table.md: python docs/make_bias_table.py (some minutes)."""

from pathlib import Path

from tis_jax.lab.bias_table import Row, pooled_table, single_table
from tis_jax.lab.drift_table import (
  STRUCTURES,
  ascent_table,
  lag_table,
  structured_table,
)

STEPS = (25, 50, 100, 200)
AFTER = [f"after {steps}" for steps in STEPS]
PAGE = """# What each correction costs and buys, exactly

<!-- Made by docs/make_bias_table.py; do not edit. -->

A policy with a logit for every token after every prefix can be enumerated: every
expectation is a finite sum, and the numbers below have no sampling error. The sampler's
logits are the learner's plus normal noise; each sequence has a random reward, and the
baseline is exact. All numbers are relative to the true policy gradient, averaged over
four random policies.

- **bias**: the length of the estimate's expected error. 0 means unbiased.
- **cosine**: between the expected estimate and the gradient. Near 1 with a large bias,
  the correction shortens the step and does little else.
- **variance**: of the estimate from one sequence.
- **accepted**: the share of tokens that train.
- **error at N**: the root mean squared error of the mean over N sequences. The
  smallest in each column is set in bold.

Three things to read from it. Only the product over the sequence is unbiased when a
reward judges the whole answer; weights on single tokens remove little of the bias.
A mask without a weight can be further off than no correction at all. And which
correction wins depends on how many sequences there are: variance first, bias later.

What the first tables do not show: real mismatch has structure, and a stale sampler is
off in the direction that the learner has just gone; the last four sections are about
these. What none shows: answers are thousands of tokens long. There a product's variance
is beyond any batch, which is why the masks exist; `by_length/*/ess` in a run's own
metrics says where that begins.

## Small noise (0.02 in the logits): the size of bf16 numerics

{small}

## Large noise (0.3 in the logits): quantised or stale samplers

{large}

## Large noise, with a perfect critic

Advantages by token from the learner's exact values, in place of one advantage for the
outcome. What comes after a token is then averaged over the learner already, and the
product up to the token is unbiased.

{critic}

## Corrections that look at the batch

Batches of four sequences from a policy with two tokens and three steps, every batch
enumerated, noise 0.3. The batch is one prompt group, so that both forms of normalising
agree. Variance and errors are those of a batch's mean; N counts batches.

{pooled}

## Errors with structure

In short, of this section and the next three: errors that a sequence shares make token
weights 1.7 times as biased, and MinPRO 1.5 times. Under a lag, centering takes off a
seventh of the bias of no correction, and has nothing to take off beside token weights.
A lag slows every estimate but the whole ratio's; within 200 updates it stalls none of
these, and which is ahead depends on how long the run is.

The bias again, under errors of one size (0.3 in the logits, noise drawn anew) and
several structures: independent after every prefix; along the sequence, where the error
of a token is 0.9 times that of the place before, and a rest; by sequence, where all
places that follow one first token share their errors; growing from 0 at the first place
to twice the size at the last. *Centred* is score centering with the sampler's whole law
(`tis_jax.losses.score_centering`), or with its most probable token and a tail
proportional to the learner.

{structured}

## A sampler that lags

The sampler is the learner of 20 exact updates ago, with no error of its own. The
baseline is the sampler's expected reward, as a group's mean is.

{lag}

The same with an error of 0.3 on top.

{both}

## Where a lag leads

Runs of expected updates with a sampler that is 20 behind: the share of the way from the
first expected reward to the best sequence's, after so many updates. Advantages have the
sampler's mean reward as baseline, as a group's have. The largest share in each column
is set in bold.

{ascent}

The same with an error of 0.3 in the sampler, which does not change over the run.

{off}

## Where a lag leads, by samples

The same lag, with 64 sequences an update instead of the expectation, four runs of each
policy.

{sampled}
"""


def table(rows: list[Row], samples: tuple[int, ...], unit: str = "N") -> str:
  best = [min(row.errors[i] for row in rows) for i in range(len(samples))]
  heads = ["correction", "bias", "cosine", "variance", "accepted"]
  heads += [f"error at {unit} = {n:,}" for n in samples]
  lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
  for row in rows:
    errors = [
      f"**{error:.3f}**" if error == best[i] else f"{error:.3f}"
      for i, error in enumerate(row.errors)
    ]
    bias = "0" if row.bias < 1e-10 else f"{row.bias:.4f}"
    numbers = [bias, f"{row.cosine:.4f}", f"{row.variance:.4g}", f"{row.accepted:.3f}"]
    lines.append("| " + " | ".join([f"`{row.name}`", *numbers, *errors]) + " |")
  return "\n".join(lines)


def plain_table(heads: list[str], rows, largest: bool) -> str:
  """Names and numbers, the best of each column set in bold."""
  best = [(max if largest else min)(x) for x in zip(*(x for _, x in rows), strict=True)]
  lines = ["| " + " | ".join(["correction", *heads]) + " |"]
  lines.append("|---" * (len(heads) + 1) + "|")
  for name, numbers in rows:
    shown = [
      "0" if abs(x) < 1e-10 else f"**{x:.3f}**" if x == best[i] else f"{x:.3f}"
      for i, x in enumerate(numbers)
    ]
    lines.append("| " + " | ".join([f"`{name}`", *shown]) + " |")
  return "\n".join(lines)


def main() -> None:
  samples, batches = (100, 1000, 10000), (25, 250, 2500)
  page = PAGE.format(
    small=table(single_table(0.02, samples=samples), samples),
    large=table(single_table(0.3, samples=samples), samples),
    critic=table(single_table(0.3, samples=samples, critic=True), samples),
    pooled=table(pooled_table(0.3, samples=batches), batches),
    structured=plain_table(list(STRUCTURES), structured_table(0.3), False),
    lag=table(lag_table(20), samples),
    both=table(lag_table(20, noise=0.3), samples),
    ascent=plain_table(AFTER, ascent_table(20, steps=STEPS), True),
    off=plain_table(AFTER, ascent_table(20, noise=0.3, steps=STEPS), True),
    sampled=plain_table(AFTER, ascent_table(20, steps=STEPS, samples=64, runs=4), True),
  )
  (Path(__file__).parent / "bias_table.md").write_text(page)


if __name__ == "__main__":
  main()
