"""SkyRL: off-policy correction, losses, advantages and reductions, by its options."""

from tis_jax.compat.sections.skyrl import used
from tis_jax.compat.skyrl.advantage_estimators import advantages
from tis_jax.compat.skyrl.critic import value_loss
from tis_jax.compat.skyrl.kl import kl_penalty
from tis_jax.compat.skyrl.loss_reduction import reduction
from tis_jax.compat.skyrl.off_policy_correction import correction, native
from tis_jax.compat.skyrl.policy_losses import policy_loss
from tis_jax.compat.skyrl.update import update

VERSION = "a956457 (2026-08-21)"

__all__ = [
  "VERSION",
  "advantages",
  "correction",
  "kl_penalty",
  "native",
  "policy_loss",
  "reduction",
  "update",
  "used",
  "value_loss",
]
