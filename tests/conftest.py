"""Every test sees eight CPU devices, so that sharding is tested wherever it matters."""

import os

_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Fixtures hold no doctests; collecting several files of one name as modules fails.
collect_ignore_glob = ["*conftest.py"]
