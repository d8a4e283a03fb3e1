"""What an import brings along, seen from a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

import tis_jax

_ROOT = str(Path(tis_jax.__file__).parents[1])


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
    "from tis_jax.store import RolloutReader, Sampling, Store, decode, encode",
  ],
)
def test_the_store_and_the_contract_do_without_jax(code):
  found = packages(imported(code))
  assert "tis_jax" in found
  assert not found & {"jax", "jaxlib", "flax", "optax"}
