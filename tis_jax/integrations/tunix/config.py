"""What a run of Tunix with tis_jax is told, beside what Tunix's GRPO is told."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from tunix.rl.grpo.grpo_learner import GRPOConfig

from tis_jax.corrections import Chain, chain, truncate
from tis_jax.integrations.tunix.checks import check_correction
from tis_jax.integrations.tunix.estimator import register_estimator
from tis_jax.integrations.tunix.policy_loss import register_policy_loss
from tis_jax.losses import MODES, check_composition
from tis_jax.numerics.checks import check_choice

_OF_TUNIX = ("policy_loss_fn", "loss_agg_mode", "loss_algo", "epsilon")
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}


@dataclasses.dataclass(kw_only=True)
class TISConfig(GRPOConfig):
  """Tunix's `GRPOConfig`, and a correction.

  Without `loss` the correction makes `sampler_is_weights` and Tunix's own loss takes
  them: a rejected token has weight 0 and stays in the denominator. With it, loss, mask
  and denominator are those of tis_jax, and Tunix's settings of its own loss are refused
  where they were changed, since nothing would read them. `beta` and `kl_loss_mode`
  count either way.

  Attributes:
    correction: the corrector, see `tis_jax.chain`.
    loss: a policy loss, its options bound by `functools.partial`; one of
      `tis_jax.losses`, or any function that `losses.traits` can read. None is Tunix's.
    aggregation: with `loss`, what the summed loss is divided by: a mode of
      `losses.denominators`, over the tokens that were sampled, each generated batch as
      one. The constant of "sequence_sum_constant" is the longest answer allowed.
    estimator: of the advantages, from rewards and groups: one of `tis_jax.advantages`.
      None is Tunix's, by `advantage_estimator`.
    inexact: what becomes of a sampler that draws from a part of the vocabulary (top-p,
      top-k): "refuse", or "train" with a ratio that is off by the mass it keeps.

  Raises:
    ValueError: a correction and a loss that would both multiply by the ratio to the
      sampler, a correction or an estimator that needs what Tunix does not have, a
      setting that nothing would read.

  >>> import tis_jax as tis
  >>> TISConfig().correction
  chain(truncate(high=2.0, level='token'))
  >>> config = TISConfig(loss=tis.losses.ppo, estimator=tis.advantages.rloo, beta=0.0)
  >>> TISConfig(loss=tis.losses.dppo)
  Traceback (most recent call last):
  ...
  ValueError: dppo already multiplies by the ratio to the sampler ...
  """

  correction: Chain = dataclasses.field(default_factory=lambda: chain(truncate(2.0)))
  loss: Callable | None = None
  aggregation: str = "token_mean"
  estimator: Callable | None = None
  inexact: Literal["refuse", "train"] = "refuse"

  def __post_init__(self):
    super().__post_init__()
    check_choice("aggregation", self.aggregation, MODES)
    check_choice("inexact", self.inexact, ("refuse", "train"))
    check_correction(self.correction)
    if self.estimator is not None:
      self.advantage_estimator = register_estimator(self.estimator)
    if self.loss is None:
      return
    check_composition(self.loss, weighted=self.correction.weighs)
    ours = register_policy_loss(self.loss)
    for name in _OF_TUNIX:
      if getattr(self, name) not in (_DEFAULTS[name], ours):
        raise ValueError(
          f"{name}={getattr(self, name)!r} is a setting of Tunix's loss, and the loss "
          "is tis_jax's: leave it out; clip widths are bound to the loss, as in "
          "functools.partial(tis.losses.ppo, clip_low=0.2), its denominator is "
          "aggregation="
        )
    self.policy_loss_fn = ours
