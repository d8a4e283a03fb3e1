"""Every test sees eight CPU devices, so that sharding is tested wherever it matters.

Nearly all of the suite's time is XLA's, compiling what then runs once on small arrays.
So the compiler is told not to try hard: a quarter of the time, the same numbers to the
tolerances. A test of what the compiler makes of a program asks for `optimized`; those
of learning, chaos, peers and engines, which run for long, have it without asking.
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
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tis_jax.rollouts import Header, Rollout, Sampling  # noqa: E402

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
  if any(
    map(request.node.get_closest_marker, ("learning", "chaos", "peers", "engines"))
  ):
    request.getfixturevalue("optimized")


def build_rollout(rows=4, prompt=3, length=5, version=0, seed=0, **changes) -> Rollout:
  """A plausible rollout with garbage wherever the masks allow it."""
  rng = np.random.default_rng(seed)
  prompt_lengths = rng.integers(1, prompt + 1, rows)
  lengths = rng.integers(1, length + 1, rows)
  mask = np.arange(length) < lengths[:, None]
  logp = np.where(mask, -rng.exponential(size=(rows, length)), np.nan)
  fields = {
    "prompts": rng.integers(0, 19, (rows, prompt)).astype(np.int32),
    "prompt_mask": np.arange(prompt) >= prompt - prompt_lengths[:, None],
    "tokens": np.where(mask, rng.integers(0, 19, (rows, length)), -7).astype(np.int32),
    "mask": mask,
    "sampler_logp": logp.astype(np.float32),
    "versions": np.where(mask, version, 10**6).astype(np.int32),
    "rewards": rng.random(rows).astype(np.float32),
    "group_ids": (np.arange(rows) // 2).astype(np.int32),
    "prompt_ids": rng.integers(0, 1000, rows).astype(np.int32),
    "finish_reasons": rng.integers(0, 2, rows).astype(np.int8),
    "header": Header(version, Sampling(dtype="bfloat16")),
  }
  return Rollout(**{**fields, **changes})


@pytest.fixture(scope="session")
def make_rollout():
  """`make_rollout(**changes)`: see `build_rollout`."""
  return build_rollout
