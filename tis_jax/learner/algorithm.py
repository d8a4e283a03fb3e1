"""What one update does with a batch: the choices, checked, and frozen before jit."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from tis_jax import losses
from tis_jax.corrections import Chain
from tis_jax.losses import KL_KINDS, MODES

# What an update hands to the corrector beside the log-probs.
_GIVEN = ("group_ids", "advantages", "versions", "learner_version", "rewards")


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """The mathematics of a learner; `make_update` compiles it.

  Attributes:
    correct: the corrector.
    loss: a policy loss of `tis_jax.losses`, its options bound by `functools.partial`.
    advantage: `advantage(rewards_B, group_ids_B, baseline_mask=...) -> [B]`, likewise.
    baseline: "all" rows make the group's baseline, or only those the correction "accepted".
    aggregation: how token losses become one number, see `losses.denominators`.
    length: the constant of the aggregation "sequence_sum_constant", in tokens.
    denominator: what it counts: the "sampled" tokens (a rejected one counts as zero) or
      those "accepted" (the step is renormalised to what is left).
    old_logp: the policy that the loss is anchored on. "recompute" takes a forward pass
      before the update (decoupled: three policies); "current" takes the log-probs of
      the gradient's own pass, the same number without the extra pass, as long as a
      batch is one update; "sampler" takes the sampler's (bypass: two policies).
    kl_coefficient: of the KL to a reference policy; 0 needs no reference.
    kl_kind: the estimator, see `losses.kl_penalty`.
    kl_weighted: weight it by the ratio to the sampler (`losses.weighted_kl_penalty`).
    kl_placement: a term of the "loss", or taken off the "reward" of each response
      before the advantages.
    overlong_buffer: tokens below the length limit T in which the reward falls, see
      `advantages.soft_overlong_penalty`; 0 takes nothing off.
    overlong_factor: what is taken off at the limit.
    overlong_filter: leave responses that ran into the limit out of the loss.
    entropy_coefficient: of the entropy bonus.
    temperature: of the policy that is trained; the sampler must have used it.
    epochs: passes over the batch.
    mini_batches: optimizer updates a pass.
    micro_batches: forward and backward passes an update; a matter of memory alone.
    shuffle: deal the rows anew to the mini-batches of each epoch.

  Raises:
    ValueError: choices that contradict each other, with what to do.
  """

  correct: Chain
  loss: Callable
  advantage: Callable
  baseline: Literal["all", "accepted"] = "all"
  aggregation: str = "token_mean"
  length: float | None = None
  denominator: Literal["sampled", "accepted"] = "sampled"
  old_logp: Literal["recompute", "current", "sampler"] = "recompute"
  kl_coefficient: float = 0.0
  kl_kind: str = "k2"
  kl_weighted: bool = False
  kl_placement: Literal["loss", "reward"] = "loss"
  overlong_buffer: int = 0
  overlong_factor: float = 1.0
  overlong_filter: bool = False
  entropy_coefficient: float = 0.0
  temperature: float = 1.0
  epochs: int = 1
  mini_batches: int = 1
  micro_batches: int = 1
  shuffle: bool = False

  def __post_init__(self):
    _one_of("baseline", self.baseline, ("all", "accepted"))
    _one_of("aggregation", self.aggregation, MODES)
    _one_of("denominator", self.denominator, ("sampled", "accepted"))
    _one_of("old_logp", self.old_logp, ("recompute", "current", "sampler"))
    _one_of("kl_kind", self.kl_kind, KL_KINDS)
    _one_of("kl_placement", self.kl_placement, ("loss", "reward"))
    for name in ("epochs", "mini_batches", "micro_batches"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
    if not self.temperature > 0:
      raise ValueError(
        f"temperature must be positive, got {self.temperature}: a greedy policy has no "
        "log-probs to learn from"
      )
    if (self.length is not None) != (self.aggregation == "sequence_sum_constant"):
      raise ValueError(
        "length belongs to the aggregation 'sequence_sum_constant', got "
        f"length={self.length} with {self.aggregation!r}"
      )
    losses.check_composition(
      self.loss, weighted=self.correct.weighs, bypass=self.old_logp == "sampler"
    )
    if self.updates > 1 and self.old_logp == "current":
      raise ValueError(
        f"old_logp='current' is exact for one update a batch, but epochs={self.epochs} "
        f"and mini_batches={self.mini_batches} make {self.updates}; take 'recompute'"
      )
    if self.micro_batches > 1 and losses.traits(self.loss).selects:
      raise ValueError(
        "this loss ranks a token among the others of its mini-batch, so "
        f"micro_batches={self.micro_batches} would change what it selects; take "
        "micro_batches=1, and spread the rows over more devices or mini-batches"
      )
    self._check_needs()
    if self.late_correction:
      self._check_late_correction()
    if self.kl_placement == "reward" and (self.late_correction or self.kl_weighted):
      raise ValueError(
        "kl_placement='reward' takes the KL of old_logp before the update, unweighted: "
        "it needs old_logp='recompute' and kl_weighted=False"
      )

  @property
  def updates(self) -> int:
    """Optimizer updates a batch."""
    return self.epochs * self.mini_batches

  @property
  def late_correction(self) -> bool:
    """Whether the correction is made in the gradient's pass, on its own log-probs.

    In bypass mode too: `old_logp` is the sampler's there, and its ratio to itself says
    nothing.
    """
    return self.old_logp != "recompute"

  @property
  def needs_reference(self) -> bool:
    """Whether an update needs the parameters of a reference policy."""
    return self.kl_coefficient != 0

  def _check_needs(self):
    for stage in self.correct.stages:
      for need in stage.needs:
        if need not in _GIVEN:
          raise ValueError(
            f"{stage.name} needs {need}, which a learner's batch does not hold"
          )
        if need == "advantages" and self.baseline == "accepted":
          raise ValueError(
            f"{stage.name} needs the advantages and baseline='accepted' makes them after "
            "the correction; take baseline='all'"
          )

  def _check_late_correction(self):
    why = (
      f"with old_logp={self.old_logp!r} the correction is made in the gradient's pass, "
    )
    if self.baseline == "accepted":
      raise ValueError(
        f"{why}after the advantages, so baseline='accepted' has no rejections to leave out;"
        " take old_logp='recompute' or baseline='all'"
      )
    if self.denominator == "accepted" and self.micro_batches > 1:
      raise ValueError(
        f"{why}one micro-batch at a time, so denominator='accepted' cannot count what the "
        "others accept; take old_logp='recompute', micro_batches=1 or "
        "denominator='sampled'"
      )
    pooling = [stage.name for stage in self.correct.stages if stage.pools]
    if pooling and self.mini_batches * self.micro_batches > 1:
      raise ValueError(
        f"{why}one micro-batch at a time, but {pooling} take statistics of the whole "
        "batch; take old_logp='recompute', or mini_batches=1 and micro_batches=1"
      )


def _one_of(name, value, choices):
  if value not in choices:
    raise ValueError(f"{name} must be one of {choices}, got {value!r}")
