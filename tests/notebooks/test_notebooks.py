"""Every notebook runs from its first cell to its last, and ships without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
  notebook = nbformat.read(path, as_version=4)
  NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": path.parent}}
  ).execute()
  # The last cell prints the step that the notebook has been leading to.
  assert notebook.cells[-1].outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
  cells = nbformat.read(path, as_version=4).cells
  assert not any(cell.get("outputs") for cell in cells)
  assert not any(cell.get("execution_count") for cell in cells)
