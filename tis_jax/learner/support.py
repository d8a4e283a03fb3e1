"""Rollouts of truncated sampling: which ratios are exact, and what of the others.

Top-k, top-p and min-p draw from a kept set, and a ratio is that of two laws on one
support only where the learner knows the set (`tis_jax.logprobs.contract`). A set that
did not fit into the record leaves the ratio over all tokens, off by the quotient of the
kept masses, and a gradient that is: tokens drawn from a part do not average the
gradient of a law over all of them to zero, so that any mean advantage moves the kept
mass. A weight of 1 would have the same gradient, and no ratio at all. Whether a set
fits is the sampler's law at that place and not the token drawn there, so leaving the
token out biases no place that stays in.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.corrections import Chain, Incoming, State, make_stage
from tis_jax.corrections.state import reject_tokens
from tis_jax.learner.batch import Batch
from tis_jax.logprobs import (
  Sampling,
  agree,
  comparable,
  comparable_top,
  truncates,
)
from tis_jax.numerics.metrics import Metrics, fraction, mean

Inexact = Literal["reject", "train"]


class ComparableBatch(NamedTuple):
  """A batch with sampler log-probs that the learner's may be subtracted from.

  Attributes:
    batch: `sampler_logp` is NaN where there is no such thing, `kept_tokens` is what the
      learner renormalises over (None: it takes all tokens), `kept_mass` is used up.
      `top_logp` is of the law that was drawn from, -inf outside of it.
    exact: `[B, T]` bool, where the ratio is that of two laws on one support; None where
      sampling kept all tokens, so that every ratio is.
  """

  batch: Batch
  exact: jax.Array | None


def comparable_batch(
  sampling: Sampling, batch: Batch, inexact: Inexact = "reject"
) -> ComparableBatch:
  """The batch as both sides of a ratio want it; `score` it with the learner's params.

  Args:
    sampling: how its tokens were drawn and their log-probs made.
    batch: as recorded.
    inexact: see `Algorithm`. "reject" makes the log-probs NaN that only an approximate
      ratio could be made with.

  Returns:
    `ComparableBatch`.

  Raises:
    ValueError: the record does not fit `sampling`, is not enough for any ratio, or,
      unless approximate ones may train, for an exact one.
  """
  kept = {"kept_mass": batch.kept_mass, "kept_tokens": batch.kept_tokens}
  given = {name: x is not None for name, x in kept.items()}
  truncated = truncates(sampling)
  if any(given.values()) and not truncated:
    raise ValueError(
      "the batch records what sampling kept, so tokens were dropped, but `sampling` of "
      "this update drops none: make it with the sampling of the rollouts' headers"
    )
  agreed = agree(sampling, **given)
  if not agreed.exact and inexact == "reject":
    raise ValueError(
      f"all ratios of these rollouts are approximate ({agreed.why}), and none of them "
      "would train. Have the sampler record what it kept (sampler.kept_tokens), or "
      "train on approximate ratios with algorithm.inexact='train'"
    )
  found = comparable(sampling, batch.sampler_logp, **kept)
  usable = found.exact if inexact == "reject" else found.present
  if batch.top_tokens is not None and batch.top_logp is not None:
    top = comparable_top(sampling, batch.top_logp, batch.top_tokens, **kept)
    batch = batch._replace(top_logp=top)
  batch = batch._replace(
    # What cannot be compared is as good as missing.
    sampler_logp=jnp.where(usable, found.sampler_logp, jnp.nan),
    kept_mass=None,
    kept_tokens=batch.kept_tokens if agreed.processed else None,
  )
  return ComparableBatch(batch, found.exact if truncated else None)


def support_chain(correct: Chain) -> Chain:
  """A chain that first takes the tokens out of the mask that are not `present`."""
  first = make_stage(_reject_inexact, makes="mask", needs=("present",))
  return Chain((first, *correct.stages), correct.metrics)


def _reject_inexact(batch: Incoming, state: State):
  return reject_tokens(state, batch.inputs.present == 0), {}


def support_metrics(recorded: Batch, exact: jax.Array | None, mask) -> Metrics:
  """What truncated sampling left to compare; nothing where it was not truncated.

  Args:
    recorded: the batch as it came.
    exact: of `ComparableBatch`.
    mask: `[B, T]` bool, the tokens that train.

  Returns:
    `support/inexact`, the share of them without an exact ratio, and, where it is
    recorded, the mean `support/kept_mass` of what the sampler chose from.
  """
  if exact is None:
    return {}
  metrics: Metrics = {"support/inexact": fraction(~exact, mask)}
  if recorded.kept_mass is not None:
    metrics["support/kept_mass"] = mean(recorded.kept_mass, mask)
  return metrics
