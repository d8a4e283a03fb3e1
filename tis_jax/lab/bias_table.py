"""Every preset's exact bias and variance, side by side."""

from typing import NamedTuple

import numpy as np

from tis_jax.corrections import Chain, chain, importance, presets, truncate
from tis_jax.lab.enumerable import Exact, exact, exact_batch, random_problem

SINGLE: dict[str, Chain] = {
  "no correction": chain(),
  "token IS": chain(importance("token")),
  "tis(2)": presets.tis(),
  "icepop(5, 0.5)": presets.icepop(),
  "kpop(0.1)": presets.kpop(),
  "prefix IS": chain(importance("prefix")),
  "prefix TIS(2)": chain(truncate(2.0, level="prefix")),
  "min-prefix IS": chain(importance("min_prefix")),
  "minpro(2)": presets.minpro(),
  "geometric IS": chain(importance("geometric")),
  "seq_is()": presets.seq_is(),
  "seq_tis(2)": presets.seq_tis(),
  "seq_tis(5)": presets.seq_tis(5.0),
  "seq_mis(3)": presets.seq_mis(),
  "token_mask(2)": presets.token_mask(),
  "sequence_mask(2)": presets.sequence_mask(),
  "geometric_mask(1.01)": presets.geometric_mask(),
  "geometric_mask(1.1)": presets.geometric_mask(1.1, 1 / 1.1),
  "length_aware_mask(1.5)": presets.length_aware_mask(),
  "geometric_mask_tis(2, 1.1)": presets.geometric_mask_tis(2.0, 1.1, 1 / 1.1),
  "seq_mask_tis(1.1)": presets.seq_mask_tis(1.1, 1 / 1.1),
  "k3_mask(0.01)": presets.k3_mask(),
  "error_mask(1.2)": presets.error_mask(1.2),
  "tv_mask(0.2)": presets.tv_mask(),
  "opsm(0.05)": presets.opsm(0.05),
}
"""Corrections that take each sequence by itself."""

POOLED: dict[str, Chain] = {
  "no correction": chain(),
  "tis(2)": presets.tis(),
  "seq_is()": presets.seq_is(),
  "seq_tis(2)": presets.seq_tis(),
  "normalized_seq_tis(2)": presets.normalized_seq_tis(),
  "group_normalized_seq_tis(2)": presets.group_normalized_seq_tis(),
  "m2po(0.04)": presets.m2po(0.04),
  "ess_scaled(2)": presets.ess_scaled(),
  "adaptive()": presets.adaptive(),
}
"""Corrections that look at the batch, beside some that do not."""


class Row(NamedTuple):
  """One correction: means over the seeds of what `Exact` holds.

  Attributes:
    name: the correction.
    bias: `|bias| / |gradient|`.
    cosine: between the expected estimate and the gradient.
    variance: of one sequence's (or one batch's) estimate, over `|gradient|^2`.
    accepted: the share of tokens that train.
    errors: the root mean squared error, over `|gradient|`, of a mean over
      `samples` sequences (or batches), one for each of `samples`.
  """

  name: str
  bias: float
  cosine: float
  variance: float
  accepted: float
  errors: tuple[float, ...]


def single_table(
  noise: float,
  *,
  vocab: int = 3,
  length: int = 7,
  seeds: int = 4,
  critic: bool = False,
  samples: tuple[int, ...] = (100, 1000, 10000),
) -> list[Row]:
  """What each correction of `SINGLE` does to the policy gradient.

  Args:
    noise: the standard deviation of the sampler's logits about the learner's.
    vocab: tokens of the policy.
    length: of its sequences.
    seeds: how many random policies the numbers are averaged over.
    critic: advantages by token from a perfect critic.
    samples: batch sizes for the errors.

  Returns:
    One `Row` a correction.
  """
  problems = [
    random_problem(vocab, length, noise=noise, seed=seed) for seed in range(seeds)
  ]
  return [
    row(name, [exact(p, correct, critic=critic) for p in problems], samples)
    for name, correct in SINGLE.items()
  ]


def pooled_table(
  noise: float,
  *,
  vocab: int = 2,
  length: int = 3,
  size: int = 4,
  seeds: int = 4,
  samples: tuple[int, ...] = (25, 250, 2500),
) -> list[Row]:
  """What each correction of `POOLED` does, over every batch of `size` sequences.

  The batch is one prompt group.

  Args:
    noise: the standard deviation of the sampler's logits about the learner's.
    vocab: tokens of the policy.
    length: of its sequences.
    size: sequences in a batch.
    seeds: how many random policies the numbers are averaged over.
    samples: numbers of batches for the errors.

  Returns:
    One `Row` a correction.
  """
  problems = [
    random_problem(vocab, length, noise=noise, seed=seed) for seed in range(seeds)
  ]
  return [
    row(
      name,
      [exact_batch(p, correct, size=size, groups=True) for p in problems],
      samples,
    )
    for name, correct in POOLED.items()
  ]


def row(name: str, found: list[Exact], samples: tuple[int, ...]) -> Row:
  """The means over `found`, with an error for each number of `samples`."""

  def mean(values):
    return float(np.mean(list(values)))

  return Row(
    name,
    mean(one.relative_bias for one in found),
    mean(one.cosine for one in found),
    mean(one.relative_variance for one in found),
    mean(one.accepted for one in found),
    tuple(mean(one.relative_mse(n) ** 0.5 for one in found) for n in samples),
  )
