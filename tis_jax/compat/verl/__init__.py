"""verl: rollout correction, policy losses, advantages and KL, by verl's options."""

from tis_jax.compat.verl.correction import correction as correction
