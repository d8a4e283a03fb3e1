"""Every test sees eight CPU devices, so that sharding is tested wherever it matters."""

import os

# Eight devices wait for each other in a collective; on a busy machine that takes long.
_FLAGS = (
  "--xla_force_host_platform_device_count=8 "
  "--xla_cpu_collective_call_terminate_timeout_seconds=300"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
# Threads of XLA's CPU client. With as many as devices, all of them may sit in a
# collective and none be left for the work that the last device waits for.
os.environ.setdefault("NPROC", "24")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Fixtures hold no doctests; collecting several files of one name as modules fails.
collect_ignore_glob = ["*conftest.py"]
