"""What becomes of rollouts that are staler at their use than the run's bound.

A writer is permitted no record that would be late if everything took its usual time.
What is late nevertheless (a slow writer beside fast ones, groups held over, an attempt
that began again) is counted, and one of four things happens to it:

  keep         it trains as everything else, under the correction
  drop         its group is left out; the next one of its prompt is not, however late
  recompute    its old_logp is the learner's own, taken before the update
  reconstruct  its old_logp is put between the sampler's and the learner's
               (`corrections.interpolate_old_logp`), without a pass for it
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from tis_jax.corrections import interpolate_old_logp
from tis_jax.numerics.arrays import Array
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.numerics.ratios import log_ratio, ratio

POLICIES = ("keep", "drop", "recompute", "reconstruct")


@dataclasses.dataclass(frozen=True)
class Late:
  """What becomes of a group with a token that is staler than store.max_staleness.

  Attributes:
    policy: "keep" trains it under the correction, "drop" leaves it out (of one prompt
      never twice in a row), "recompute" anchors its stale tokens on the learner's own
      log-probs, "reconstruct" on log-probs between the sampler's and the learner's. The
      last two are for old_logp="sampler"; with "recompute" and "current" all tokens
      have the learner's own.
    high: cap on the weight of a token whose anchor is not the sampler's: anchor over
      sampler.

  Raises:
    ValueError: another policy, or a cap that is not above 0.
  """

  policy: Literal["keep", "drop", "recompute", "reconstruct"] = "keep"
  high: float = 2.0

  def __post_init__(self):
    check_choice("late.policy", self.policy, POLICIES)
    check_number("late.high", self.high, above=0)

  @property
  def anchors(self) -> bool:
    """Whether late tokens get an anchor of their own."""
    return self.policy in ("recompute", "reconstruct")


def anchored(
  late: Late,
  max_staleness: int,
  *,
  logp: jax.Array,
  old_logp: jax.Array | None,
  sampler_logp: jax.Array,
  versions: Array,
  mask: Array,
  version: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
  """Three policies for the late tokens of a bypass update, two for the others.

      anchor = old_logp, or the interpolated one      late tokens
               sampler_logp                           the others
      weight = min(exp(anchor - sampler_logp), high)  late tokens; 1 elsewhere

  Args:
    late: what to do.
    max_staleness: the bound, in versions.
    logp: `[B, T]`, current, without gradient.
    old_logp: `[B, T]`, before the update; only to recompute.
    sampler_logp: `[B, T]`, none missing.
    versions: `[B, T]` int.
    mask: `[B, T]` bool.
    version: the learner's.

  Returns:
    (anchor, weight), both `[B, T]` fp32.

  >>> x = jnp.array([[-1.0, -1.0]])
  >>> anchor, weight = anchored(Late("recompute"), 1, logp=x, old_logp=x - 1.0,
  ...   sampler_logp=x - 3.0, versions=jnp.array([[4, 7]]), mask=x < 0, version=7)
  >>> anchor.tolist(), weight.tolist()
  ([[-2.0, -4.0]], [[2.0, 1.0]])
  """
  over = mask & (version - versions > max_staleness)
  if late.policy == "recompute":
    assert old_logp is not None, "`assess` takes it"
    mine = old_logp
  else:
    mine = interpolate_old_logp(logp, sampler_logp, versions, version)
  anchor = jnp.where(over, mine, sampler_logp)
  weight = jnp.minimum(ratio(log_ratio(anchor, sampler_logp, over)), late.high)
  return anchor, jnp.where(over, weight, 1.0)
