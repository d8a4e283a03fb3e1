"""The atlas's page shows the CSV that was measured."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def atlas():
  spec = importlib.util.spec_from_file_location("atlas", ROOT / "benchmarks/atlas.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_table_is_the_csv(atlas):
  rows = atlas.read()
  assert (ROOT / "docs/atlas/atlas.md").read_text() == atlas.table(rows)


def test_rows_agree_with_each_other(atlas):
  """Of small differences k3 is half the mean square; no mean is above its maximum."""
  for row in atlas.read():
    mean, largest, k3 = (float(row[x]) for x in ("mean |d|", "max |d|", "k3"))
    assert mean < largest and k3 > 0
    if mean < 0.1:
      assert 0.5 * mean**2 < k3 < 0.75 * largest**2
