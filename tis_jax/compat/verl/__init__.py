"""verl: rollout correction, policy and value losses, advantages and KL, by its options.

Each takes the options it reads, alone or among all of verl's configuration; `used` says
which function reads which key.
"""

from tis_jax.compat.sections.verl import used
from tis_jax.compat.verl.advantage_estimators import advantages
from tis_jax.compat.verl.aggregation import agg_loss
from tis_jax.compat.verl.kl import kl_penalty
from tis_jax.compat.verl.policy_losses import policy_loss
from tis_jax.compat.verl.rollout_correction import correction, native
from tis_jax.compat.verl.update import update
from tis_jax.compat.verl.value import value_loss

VERSION = "1dda039 (2026-08-22), and for the correction also 4424616 (2025-10-28)"

__all__ = [
  "VERSION",
  "advantages",
  "agg_loss",
  "correction",
  "kl_penalty",
  "native",
  "policy_loss",
  "update",
  "used",
  "value_loss",
]
