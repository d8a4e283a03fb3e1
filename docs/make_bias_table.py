"""Writes docs/bias_table.md: python docs/make_bias_table.py (about a minute)."""

from pathlib import Path

from tis_jax.lab.bias_table import Row, pooled_table, single_table

PAGE = """# What each correction costs and buys, exactly

Made by `docs/make_bias_table.py`; do not edit.

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

What it does not show: real mismatch is correlated along a sequence, and answers are
thousands of tokens long. There a product's variance is beyond any batch, which is why
the masks exist; `by_length/*/ess` in a run's own metrics says where that begins.

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


def main() -> None:
  samples, batches = (100, 1000, 10000), (25, 250, 2500)
  page = PAGE.format(
    small=table(single_table(0.02, samples=samples), samples),
    large=table(single_table(0.3, samples=samples), samples),
    critic=table(single_table(0.3, samples=samples, critic=True), samples),
    pooled=table(pooled_table(0.3, samples=batches), batches),
  )
  (Path(__file__).parent / "bias_table.md").write_text(page)


if __name__ == "__main__":
  main()
