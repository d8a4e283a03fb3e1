"""What one row carries from the rollout to a loss of tis_jax."""

import flax
import jax
from tunix.rl.grpo import grpo_learner


@flax.struct.dataclass(frozen=True)
class TISExample(grpo_learner.TrainExample):
  """Tunix's example, its weights in `sampler_is_weights`, and what our losses take.

  Attributes:
    sampler_logp: `[B, T]` float32, the sampler's log-probs, in nats.
    accepted: `[B, T]` bool, the tokens that the correction left in.
    denominator: `[B]` float32, what a row's summed loss is divided by.
  """

  sampler_logp: jax.Array | None = None
  accepted: jax.Array | None = None
  denominator: jax.Array | None = None
