"""docs/metrics.md is made of what is measured; tests/runner/test_train.py of names."""

import json
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "make_metrics.py"))


def test_the_page_is_what_the_script_makes():
  measured = (DOCS / "metrics.csv").read_text()
  assert (DOCS / "metrics.md").read_text() == MADE["page"](measured), (
    "run python docs/make_metrics.py"
  )


def test_ranges_are_percentiles_of_the_steps(tmp_path):
  run = tmp_path / "token_tis_seed-5"
  run.mkdir()
  (run / "summary.json").write_text("{}")
  rows = [{"step": i, "mismatch/k3": float(i)} for i in range(1, 122)]
  (run / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in rows))
  head, row = MADE["ranges"](tmp_path).splitlines()
  assert head == "regime,runs,metric,p5,p50,p95"
  assert row == "bf16 8 behind,1,mismatch/k3,26,71,116"
