"""Where Tunix is not installed, and what must not depend on it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tis_jax

_ROOT = str(Path(tis_jax.__file__).parents[1])


def test_a_missing_tunix_is_named_with_the_command(monkeypatch):
  for name in list(sys.modules):
    if name.startswith("tis_jax.integrations.tunix"):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "tunix", None)
  with pytest.raises(ImportError, match=r'pip install "google-tunix==0\.1\.7"'):
    importlib.import_module("tis_jax.integrations.tunix")


def test_tunix_is_not_imported_until_asked_for():
  script = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); import tis_jax as tis; "
    "tis.chain, tis.compat, tis.losses; import tis_jax.integrations; "
    "print('tunix' in sys.modules)"
  )
  command = [sys.executable, "-I", "-c", script]
  out = subprocess.run(command, capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "False"
