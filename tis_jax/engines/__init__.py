"""What generates: the native low-precision engine."""

from tis_jax.engines.native import Generation as Generation
from tis_jax.engines.native import generate as generate
