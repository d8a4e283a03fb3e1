"""The tables of studies that the pages show are those of the CSV beside them."""

from pathlib import Path

import pytest

from tis_jax.runner.study import from_csv, rebuilt

FOLDER = Path(__file__).parents[2] / "docs" / "study"
TABLES = sorted(FOLDER.glob("*.csv"))


def test_there_are_some():
  assert "headline" in {path.stem for path in TABLES}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_markdown_is_made_of_the_csv(path):
  text = path.read_text()
  page = path.with_suffix(".md").read_text()
  assert page == rebuilt(text), (
    f"run tis study --from docs/study/{path.name} --out docs/study/{path.stem}.md"
  )


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_summaries_agree_with_the_curves(path):
  for run in from_csv(path.read_text()):
    if run.state == "finished":
      curve = list(run.curve.values())
      base, final = (run.summary[f"pass_at_1/{x}"] for x in ("base", "final"))
      assert (curve[0], curve[-1]) == (base, final)
      assert run.summary["pass_at_1/lowest"] == min(curve)
