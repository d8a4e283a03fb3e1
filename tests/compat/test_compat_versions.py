"""Every dialect says which version of its peer it reproduces, here and on the page."""

import re
from pathlib import Path

import pytest

from tis_jax import compat

_PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text()
_NAMES = compat.PEERS


@pytest.mark.parametrize("name", _NAMES)
def test_a_dialect_names_the_commit_or_release_and_the_date_of_its_peer(name):
  version = getattr(compat, name).VERSION
  assert re.search(r"20\d\d-\d\d-\d\d", version)
  assert re.search(r"\b[0-9a-f]{7}\b|pull request \d+|\d+\.\d+\.\d+", version)
  assert f"| `{name}` | {version} |" in _PAGE
