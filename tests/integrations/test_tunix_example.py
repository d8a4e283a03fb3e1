"""examples/tunix_grpo.py runs as it stands, with either loss."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.tunix
@pytest.mark.parametrize("loss", ["tunix", "ours"])
def test_the_example_runs_and_shows_the_gap(loss):
  pytest.importorskip("tunix", reason="Tunix is not installed: make test-tunix")
  command = [sys.executable, str(ROOT / "examples" / "tunix_grpo.py")]
  command += ["--steps", "3", "--loss", loss]
  out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  gaps = re.findall(r"step \d: reward [\d.]+, KL\(sampler, learner\) (\S+) nats", out)
  assert len(gaps) == 3
  # Of a bf16 sampler: there, and small.
  assert all(1e-9 < float(gap) < 1e-4 for gap in gaps)
