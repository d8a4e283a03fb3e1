"""Params that ship in the package."""

from tis_jax.models.weights.arithmetic import read_arithmetic, write_arithmetic

__all__ = ["read_arithmetic", "write_arithmetic"]
