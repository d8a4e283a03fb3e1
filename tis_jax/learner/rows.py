"""A batch with what an update knows of it, and what a corrector is told of that."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tis_jax.learner.batch import Batch


class Targets(NamedTuple):
  """What a critic is trained on.

  Attributes:
    values: `[B, T]`, its own before the update.
    returns: `[B, T]` that the estimator made of them.
    mask: `[B, T]` bool: the tokens of the rows that make the baseline.
    denominator: `[B]` of the mini-batch.
  """

  values: Any
  returns: Any
  mask: Any
  denominator: Any = None


class Rows(NamedTuple):
  """A batch with what is known of it; None where nothing is, or not yet.

  The fields are Any because the algorithm, not their type, says which of them a step
  has made.

  Attributes:
    batch: with comparable sampler log-probs, and a mask of what may train.
    advantages: `[B]` or `[B, T]`.
    old_logp: `[B, T]` of the policy before the update.
    ref_logp: `[B, T]` of the reference policy.
    weight: `[B, T]` of the correction.
    trains: `[B, T]` bool, its mask.
    denominator: `[B]` of the mini-batch.
    exact: `[B, T]` bool, False where a ratio is only approximate and its token is left
      out for that; None where none is.
    critic: `Targets`.
  """

  batch: Batch
  advantages: Any = None
  old_logp: Any = None
  ref_logp: Any = None
  weight: Any = None
  trains: Any = None
  denominator: Any = None
  exact: Any = None
  critic: Any = None


CHAIN_ARGUMENTS: dict[str, Callable[[Rows, Any], Any]] = {
  "group_ids": lambda rows, version: rows.batch.group_ids,
  "advantages": lambda rows, version: rows.advantages,
  "versions": lambda rows, version: rows.batch.versions,
  "learner_version": lambda rows, version: version,
  "rewards": lambda rows, version: rows.batch.rewards,
}
"""What a learner tells a corrector beside the log-probs: of `corrections.Inputs`."""

LOSS_ARGUMENTS = ("logp", "old_logp", "sampler_logp", "advantages", "mask", "key")
"""What a learner gives a loss, of `losses.ARGUMENTS`: its rows are not packed."""
