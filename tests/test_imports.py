"""What an import brings along, seen from a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

import tis_jax

_ROOT = str(Path(tis_jax.__file__).parents[1])
_CORE = (
  "import tis_jax as tis; tis.chain; tis.losses.ppo; tis.token_logprobs; "
  "tis.finalize; tis.advantages.grpo; tis.presets.tis"
)
_EXTRAS = {
  "absl",
  "chex",
  "flax",
  "matplotlib",
  "ml_collections",
  "optax",
  "orbax",
  "tensorstore",
}


def imported(code: str) -> set[str]:
  """The modules there are after `code`, and no other influence (-I)."""
  script = f"import sys; sys.path.insert(0, {_ROOT!r}); {code}; print(*sys.modules)"
  command = [sys.executable, "-I", "-c", script]
  out = subprocess.run(command, capture_output=True, text=True, check=True)
  return set(out.stdout.split())


def packages(modules: set[str]) -> set[str]:
  return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
  "code",
  [
    "import tis_jax, tis_jax.logprobs",
    "from tis_jax.logprobs import Agreement, Sampling, agree",
    "from tis_jax import rollouts; rollouts.validate",
    "from tis_jax.store import RolloutReader, Sampling, Store, decode, encode",
    "from tis_jax import tasks; tasks.load('gsm8k_steps')",
    "from tis_jax import doctor; import tis_jax.doctor.check, tis_jax.doctor.command",
  ],
)
def test_the_store_the_contract_and_tasks_do_without_jax(code):
  found = packages(imported(code))
  assert "tis_jax" in found
  assert not found & {"jax", "jaxlib", "flax", "optax"}


def test_the_core_needs_no_extra():
  found = packages(imported(_CORE))
  assert "jax" in found
  assert not found & _EXTRAS


@pytest.mark.parametrize("name", ["jax.experimental.pallas", "tis_jax.compat"])
def test_the_core_leaves_out_what_takes_long(name):
  assert name not in imported(_CORE)
