"""verl: rollout correction, policy losses, advantages and KL, by verl's options."""

from tis_jax.compat.verl.advantage_estimators import advantages
from tis_jax.compat.verl.kl import kl_penalty
from tis_jax.compat.verl.policy_losses import policy_loss
from tis_jax.compat.verl.rollout_correction import correction, native

__all__ = ["advantages", "correction", "kl_penalty", "native", "policy_loss"]
