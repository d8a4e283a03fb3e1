"""The version of tis_jax, read by the build and printed in every run's header."""

__version__ = "0.1.0"
