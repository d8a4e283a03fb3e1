"""Every notebook runs from its first cell to its last, and ships without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAINING = ("03_training", "06_without_it")
"""Those that train for tens of CPU seconds: `make test-learning`; the rest is slow."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def test_the_page_lists_them_all():
  page = (ROOT / "docs" / "notebooks.md").read_text()
  listed = re.findall(r"/blob/main/notebooks/(\w+)\.ipynb", page)
  assert NOTEBOOKS and sorted(set(listed)) == [path.stem for path in NOTEBOOKS]
  assert set(TRAINING) < set(listed)


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path, marks=pytest.mark.learning if path.stem in TRAINING else pytest.mark.slow
    )
    for path in NOTEBOOKS
  ],
  ids=lambda path: path.stem,
)
def test_runs(path):
  notebook = read(path)
  NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": path.parent}}
  ).execute()
  # The last cell prints what the notebook has been leading to.
  assert notebook.cells[-1].outputs
  assert any("image/png" in out.get("data", {}) for out in outputs(notebook))


def outputs(notebook):
  return [out for cell in notebook.cells for out in cell.get("outputs", ())]


@each
def test_outputs_are_stripped(path):
  cells = read(path).cells
  assert not any(cell.get("outputs") for cell in cells)
  assert not any(cell.get("execution_count") for cell in cells)


@each
def test_opens_in_colab(path):
  first, install, *_ = read(path).cells
  assert f"/blob/main/notebooks/{path.name})\n\n# " in first.source
  assert first.source.startswith("[![Open In Colab]")
  # One cell for all of them, that does nothing elsewhere.
  assert install.source == read(NOTEBOOKS[0]).cells[1].source
  assert 'if importlib.util.find_spec("google.colab"):' in install.source
