"""SkyRL: off-policy correction, losses, advantages and reductions, by its options."""

from tis_jax.compat.skyrl.correction import correction as correction
