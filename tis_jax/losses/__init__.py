"""Policy losses, KL penalties and aggregation."""

from tis_jax.losses.aggregation import aggregate, denominators
from tis_jax.losses.kl import kl_penalty
from tis_jax.losses.ppo import ppo_loss
from tis_jax.losses.reinforce import reinforce_loss

__all__ = ["aggregate", "denominators", "kl_penalty", "ppo_loss", "reinforce_loss"]
