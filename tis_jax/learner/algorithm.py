"""What one update does with a batch: the choices, checked, and frozen before jit."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Literal

from tis_jax import losses
from tis_jax.advantages import ARGUMENTS as ADVANTAGE_ARGUMENTS
from tis_jax.corrections import Chain, token_law
from tis_jax.learner.late import Late
from tis_jax.learner.optimizer import AdamW
from tis_jax.learner.rows import CHAIN_ARGUMENTS, LOSS_ARGUMENTS
from tis_jax.numerics.checks import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class Aggregation:
  """How token losses become one number.

  Attributes:
    mode: what the sum of token losses is divided by, see `losses.denominators`.
    denominator: what that counts: the tokens "sampled" (a rejected one counts as zero)
      or those "accepted" (the step is renormalised to what is left).
    length: the constant of the mode "sequence_sum_constant", in tokens.
  """

  mode: str = "token_mean"
  denominator: Literal["sampled", "accepted"] = "sampled"
  length: float | None = None

  def __post_init__(self):
    check_choice("mode", self.mode, losses.MODES)
    check_choice("denominator", self.denominator, ("sampled", "accepted"))
    if self.length is not None and self.mode != "sequence_sum_constant":
      raise ValueError(
        f"mode {self.mode!r} takes no length; it is 'sequence_sum_constant' that does"
      )
    if self.length is None and self.mode == "sequence_sum_constant":
      raise ValueError("mode 'sequence_sum_constant' needs a length, in tokens")


@dataclasses.dataclass(frozen=True)
class KL:
  """The KL to a reference policy, which is the one that the run started from.

  Attributes:
    coefficient: of the penalty; 0 needs no reference.
    kind: the estimator, see `losses.kl_penalty`.
    weighted: weight it by the ratio to the sampler, see `losses.weighted_kl_penalty`.
    placement: a term of the "loss", or taken off the "reward" of each response before
      the advantages.
  """

  coefficient: float = 0.0
  kind: str = "k2"
  weighted: bool = False
  placement: Literal["loss", "reward"] = "loss"

  def __post_init__(self):
    check_choice("kind", self.kind, losses.KL_KINDS)
    check_choice("placement", self.placement, ("loss", "reward"))


@dataclasses.dataclass(frozen=True)
class Overlong:
  """What becomes of responses that come near the length limit.

  Attributes:
    buffer: tokens below the limit in which the reward falls, see
      `advantages.soft_overlong_penalty`; 0 takes nothing off.
    factor: what is taken off at the limit.
    filter: leave responses that ran into the limit out of the loss.
  """

  buffer: int = 0
  factor: float = 1.0
  filter: bool = False


@dataclasses.dataclass(frozen=True)
class Critic:
  """The critic of an estimator that takes `values`, as `gae` does; else not used.

  A model of its own, started from the policy's params with its values at 0, and trained
  beside it: in the same mini-batches, with the aggregation's mode.

  Attributes:
    optimizer: of its updates.
    clip: how far a value may move in an update, see `losses.value`; None leaves it
      free.
  """

  optimizer: AdamW = AdamW()
  clip: float | None = 0.2


CENTRED = ("reinforce", "ppo", "importance_sampling", "cispo")
"""Losses with the gradient `-A grad logp` at a ratio of 1, which a centering is of."""

_BEFORE_THE_UPDATE = ("logp", "sum_squared_probs", "weight")
"""What an estimator can ask for that takes a forward pass before the update."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """The mathematics of a learner; `make_update` compiles it.

  Attributes:
    correct: the corrector.
    loss: a policy loss, its options bound by `functools.partial`; one of
      `tis_jax.losses`, or any function that `losses.traits` can read.
    advantage: an estimator, likewise: one of `advantages.ESTIMATORS`, or any function
      that takes some of `advantages.ARGUMENTS`; what it does not name is not computed.
    old_logp: the policy that the loss is anchored on. "recompute" takes a forward pass
      before the update (decoupled: three policies); "current" takes the log-probs of
      the gradient's own pass, the same number without the extra pass, as long as a
      batch is one update; "sampler" takes the sampler's (bypass: two policies).
    inexact: what becomes of a token that truncated sampling (top-k, top-p, min-p) drew
      from a set that is not in the record, so that its ratio is not that of two laws on
      one support. "reject" takes it out of the mask; its ratio counts as missing.
      "train" goes on with the ratio over all tokens, too large by the quotient of the
      kept masses; a record without any sets is refused otherwise. Either way
      `support/inexact` is their share. See `tis_jax.learner.support`.
    baseline: "all" rows make the group's baseline and train a critic, or only those
      that the correction "accepted".
    critic: of an estimator that takes `values`.
    aggregation: how token losses become one number.
    kl: the KL to a reference policy.
    overlong: what becomes of responses near the length limit.
    late: what becomes of tokens staler than `max_staleness`.
    max_staleness: the bound, in learner steps; None: nothing is late.
    score_centering: take what the sampler expects of the weighted score out of the
      update, see `losses.score_centering`. The rollouts have to record the sampler's
      most probable tokens (sampler.top_logprobs), the correction to be one of single
      tokens (`corrections.token_law`), and the loss to hold no ratio at the start of
      the update.
    replay_experts: of a mixture, send each token to the experts that the sampler sent
      it to, in every pass but the reference's; their shares are the learner's own, and
      its router trains. Log-probs then differ by arithmetic, and no longer by a router
      that decides otherwise. The rollouts have to record the experts
      (sampler.routed_experts).
    entropy_coefficient: of the entropy bonus.
    temperature: of the policy that is trained; the sampler must have used it.
    epochs: passes over the batch.
    mini_batches: optimizer updates a pass.
    micro_batches: forward and backward passes an update, at most where rows are packed;
      a matter of memory alone.
    shuffle: deal the rows anew to the mini-batches of each epoch.
    packing: compute packed rows instead of padded ones, see `pack`: the same numbers to
      rounding, in fewer passes. None does where passes can be saved, which takes
      micro_batches above 1, no shuffle and no replay_experts.

  Raises:
    ValueError: choices that contradict each other, with what to do.
  """

  correct: Chain
  loss: Callable
  advantage: Callable
  old_logp: Literal["recompute", "current", "sampler"] = "recompute"
  inexact: Literal["reject", "train"] = "reject"
  baseline: Literal["all", "accepted"] = "all"
  critic: Critic = Critic()
  aggregation: Aggregation = Aggregation()
  kl: KL = KL()
  overlong: Overlong = Overlong()
  late: Late = Late()
  max_staleness: int | None = None
  score_centering: bool = False
  replay_experts: bool = False
  entropy_coefficient: float = 0.0
  temperature: float = 1.0
  epochs: int = 1
  mini_batches: int = 1
  micro_batches: int = 1
  shuffle: bool = False
  packing: bool | None = None

  def __post_init__(self):
    check_choice("old_logp", self.old_logp, ("recompute", "current", "sampler"))
    check_choice("inexact", self.inexact, ("reject", "train"))
    check_choice("baseline", self.baseline, ("all", "accepted"))
    for name in ("epochs", "mini_batches", "micro_batches"):
      check_number(name, getattr(self, name), at_least=1)
    if not self.temperature > 0:
      raise ValueError(
        f"temperature must be positive, got {self.temperature}: a greedy policy has no "
        "log-probs to learn from"
      )
    if self.packing and self.shuffle:
      raise ValueError(
        "packing=True lays the rows out for the mini-batches that they stand in, and "
        "shuffle=True deals them anew; take one of the two"
      )
    if self.packing and self.replay_experts:
      raise ValueError(
        "replay_experts=True takes padded rows, and packing=True makes none; leave "
        "packing None"
      )
    if self.updates > 1 and self.old_logp == "current":
      raise ValueError(
        f"old_logp='current' is exact for one update a batch, but epochs={self.epochs} "
        f"and mini_batches={self.mini_batches} make {self.updates}; take 'recompute'"
      )
    self._check_loss()
    self._check_advantage()
    self._check_needs()
    if self.score_centering:
      self._check_centering()
    if self.late_correction:
      self._check_late_correction()
    if self.late.anchors:
      self._check_late()
    if self.kl.placement == "reward" and (self.late_correction or self.kl.weighted):
      raise ValueError(
        "kl.placement='reward' takes the KL of old_logp before the update, unweighted: "
        "it needs old_logp='recompute' and kl.weighted=False"
      )

  @property
  def updates(self) -> int:
    """Optimizer updates a batch."""
    return self.epochs * self.mini_batches

  @property
  def packs(self) -> bool:
    """Whether batches are to be packed before an update."""
    if self.packing is None:
      padded = self.shuffle or self.replay_experts
      return self.micro_batches > 1 and not padded
    return self.packing

  @property
  def late_correction(self) -> bool:
    """Whether the correction is made in the gradient's pass, on its own log-probs.

    In bypass mode too: `old_logp` is the sampler's there, and its ratio to itself says
    nothing.
    """
    return self.old_logp != "recompute"

  @property
  def anchors_late(self) -> bool:
    """Whether late tokens have another anchor than the rest."""
    bound = self.max_staleness is not None
    return bound and self.late.anchors and self.old_logp == "sampler"

  @property
  def needs_reference(self) -> bool:
    """Whether an update needs the parameters of a reference policy."""
    return self.kl.coefficient != 0

  @property
  def needs_critic(self) -> bool:
    """Whether an update trains a critic, and needs an optimizer for it."""
    return "values" in losses.traits(self.advantage).needs

  @property
  def corrects_first(self) -> bool:
    """Whether the advantages are made after the correction, of what it found."""
    if self.late_correction:
      return False
    takes_weight = self.correct.weighs and self.takes("weight")
    return self.baseline == "accepted" or takes_weight

  def takes(self, name: str) -> bool:
    """Whether the advantage estimator takes the argument `name`."""
    return name in inspect.signature(self.advantage).parameters

  def _check_advantage(self):
    estimator = losses.traits(self.advantage)
    unknown = [name for name in estimator.needs if name not in ADVANTAGE_ARGUMENTS]
    if unknown:
      raise ValueError(
        f"{estimator.name} needs {', '.join(unknown)}, which an update does not give; "
        "bind settings with functools.partial"
      )
    kl_in_reward = self.needs_reference and self.kl.placement == "reward"
    if (self.overlong.buffer or kl_in_reward) and not self.takes("rewards"):
      raise ValueError(
        f"{estimator.name} takes no rewards, which overlong.buffer and "
        "kl.placement='reward' take off; set overlong.buffer=0 and kl.placement='loss'"
      )
    before = [name for name in estimator.needs if name in _BEFORE_THE_UPDATE]
    if before and self.late_correction:
      raise ValueError(
        f"{estimator.name} needs {' and '.join(before)} of the policy before the "
        f"update, which old_logp={self.old_logp!r} does not compute; take "
        "old_logp='recompute'"
      )

  def _check_loss(self):
    losses.check_composition(
      self.loss, weighted=self.correct.weighs, bypass=self.old_logp == "sampler"
    )
    loss = losses.traits(self.loss)
    unknown = [name for name in loss.needs if name not in LOSS_ARGUMENTS]
    if unknown:
      raise ValueError(
        f"{loss.name} needs {', '.join(unknown)}, which an update does not give; bind "
        "settings with functools.partial"
      )
    if self.micro_batches > 1 and loss.selects:
      raise ValueError(
        f"{loss.name} ranks a token among the others of its mini-batch, so "
        f"micro_batches={self.micro_batches} would change what it selects; take "
        "micro_batches=1, and spread the rows over more devices or mini-batches"
      )

  def _check_centering(self):
    loss = losses.traits(self.loss)
    if loss.name not in CENTRED:
      raise ValueError(
        f"score_centering centres the score itself, and {loss.name} does more with it; "
        f"take one of {', '.join(CENTRED)}"
      )
    if loss.ratio_to == "old" and self.old_logp == "sampler":
      raise ValueError(
        f"score_centering needs the weight as the correction makes it, but with "
        f"old_logp='sampler' {loss.name} holds the ratio to the sampler and clips it; "
        "take reinforce, or old_logp='current'"
      )
    if self.updates > 1 and not self.late_correction:
      raise ValueError(
        f"score_centering is of one law, but epochs={self.epochs} and mini_batches="
        f"{self.mini_batches} make {self.updates} updates under weights of the first; "
        "take one update a batch, or reinforce with old_logp='sampler'"
      )
    token_law(self.correct)

  def _check_needs(self):
    for stage in self.correct.stages:
      for need in stage.needs:
        if need not in CHAIN_ARGUMENTS:
          raise ValueError(
            f"{stage.name} needs {need}, which a learner's batch does not hold"
          )
        if need == "advantages" and self.baseline == "accepted":
          raise ValueError(
            f"{stage.name} needs the advantages and baseline='accepted' makes them "
            "after the correction; take baseline='all'"
          )
        if need == "advantages" and self.corrects_first:
          raise ValueError(
            f"{stage.name} needs the advantages and "
            f"{losses.traits(self.advantage).name} the correction's weight; take "
            "another estimator, or a chain without one of the two"
          )

  def _check_late(self):
    if self.late.policy == "reconstruct" and self.old_logp != "sampler":
      raise ValueError(
        f"old_logp={self.old_logp!r} has the learner's own log-probs of all tokens, so "
        "there is nothing to reconstruct; take late.policy='recompute' or 'keep'"
      )
    loss = losses.traits(self.loss)
    if self.old_logp == "sampler" and loss.ratio_to != "old":
      raise ValueError(
        f"{loss.name} holds no ratio to old_logp, so late.policy={self.late.policy!r} "
        "would change nothing but weights; take late.policy='keep' or 'drop'"
      )
    if self.old_logp == "sampler" and self.score_centering:
      raise ValueError(
        "score_centering is of one law, and late.policy="
        f"{self.late.policy!r} gives late tokens another; take 'keep' or 'drop'"
      )

  def _check_late_correction(self):
    why = (
      f"with old_logp={self.old_logp!r} the correction is made in the gradient's pass, "
    )
    if self.baseline == "accepted":
      raise ValueError(
        f"{why}after the advantages, so baseline='accepted' has no rejections to leave "
        "out; take old_logp='recompute' or baseline='all'"
      )
    if self.aggregation.denominator == "accepted" and self.micro_batches > 1:
      raise ValueError(
        f"{why}one micro-batch at a time, so denominator='accepted' cannot count what "
        "the others accept; take old_logp='recompute', micro_batches=1 or "
        "denominator='sampled'"
      )
    pooling = [stage.name for stage in self.correct.stages if stage.pools]
    if pooling and self.mini_batches * self.micro_batches > 1:
      raise ValueError(
        f"{why}one micro-batch at a time, but {pooling} take statistics of the whole "
        "batch; take old_logp='recompute', or mini_batches=1 and micro_batches=1"
      )
