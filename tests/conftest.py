"""Every test sees eight CPU devices, so that sharding is tested wherever it matters.

Nearly all of the suite's time is XLA's, compiling what then runs once on small arrays.
So the compiler is told not to try hard: a quarter of the time, the same numbers to the
tolerances. A test of what the compiler makes of a program asks for `optimized`; those
that run for long, the ones that `make test` leaves out, have it without asking.
"""

import os
from importlib import metadata

# Eight devices wait for each other in a collective; on a busy machine that takes long.
_FLAGS = (
  "--xla_force_host_platform_device_count=8 "
  "--xla_cpu_collective_call_terminate_timeout_seconds=300"
)
if metadata.version("jaxlib").startswith("0.10."):
  # The emitters of fusions build each kernel through MLIR, which is most of a compile.
  # XLA ends a process that sets a flag which it does not know, as later ones do.
  _FLAGS += " --xla_cpu_use_fusion_emitters=false"
_LIGHTLY = "jax_disable_most_optimizations"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
# Threads of XLA's CPU client. With as many as devices, all of them may sit in a
# collective and none be left for the work that the last device waits for.
os.environ.setdefault("NPROC", "24")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# By the environment, for the processes that tests start: samplers, notebooks.
os.environ.setdefault(_LIGHTLY.upper(), "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Fixtures hold no doctests; collecting several files of one name as modules fails.
collect_ignore_glob = ["*conftest.py"]


@pytest.fixture
def optimized(monkeypatch):
  """With the compiler's usual effort, here and in processes started meanwhile."""
  before = jax.config.values[_LIGHTLY]
  monkeypatch.setenv(_LIGHTLY.upper(), "0")
  jax.config.update(_LIGHTLY, False)
  yield
  jax.config.update(_LIGHTLY, before)


@pytest.fixture(autouse=True)
def _long_runs_are_optimized(request):
  if any(map(request.node.get_closest_marker, ("learning", "chaos", "peers"))):
    request.getfixturevalue("optimized")
