"""What a correction returns."""

from typing import NamedTuple

import jax

from tis_jax.numerics.metrics import Metrics


class Correction(NamedTuple):
  """The outcome of a corrector on one batch.

  Attributes:
    weight: `[B, T]` fp32, multiplies each token's loss; 0 where the incoming mask was
      False. Carries no gradient.
    mask: `[B, T]` bool, the tokens that still train: the incoming mask less what was
      rejected.
    metrics: poolable metrics (`tis_jax.numerics.metrics`) of this batch.
  """

  weight: jax.Array
  mask: jax.Array
  metrics: Metrics
