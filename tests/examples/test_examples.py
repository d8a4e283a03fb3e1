"""The examples as their readers run them: whole, in a process of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = [
  ROOT / "examples" / name for name in ("flax_linen.py", "flax_nnx.py", "optax_only.py")
]
LINE = re.compile(r" *\d+  reward (\S+)  ESS (\S+)  k3 (\S+)  clipped (\S+)%")


def test_the_page_shows_the_files_themselves():
  page = (ROOT / "docs" / "examples.md").read_text()
  shown = re.findall(r'^--8<-- "(.+)"$', page, flags=re.M)
  assert {f"examples/{path.name}" for path in EXAMPLES} <= set(shown)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_on_a_page(path):
  assert len(path.read_text().splitlines()) < 80


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_its_policy_learns(path):
  done = subprocess.run(
    [sys.executable, f"examples/{path.name}"],
    capture_output=True,
    text=True,
    timeout=300,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  *lines, last = done.stdout.splitlines()
  seen = [[float(x) for x in LINE.fullmatch(line).groups()] for line in lines]
  rewards, ess, k3, clipped = zip(*seen, strict=True)

  first, final = map(float, re.fullmatch(r"reward (\S+) -> (\S+)", last).groups())
  assert (first, final) == (rewards[0], rewards[-1])
  assert first < 0.2 < 0.8 < final
  # First the sampler's params are rounded and no more; then they are behind as well.
  assert 1e-9 < k3[0] < 1e-5 and max(k3) > 1e-2
  assert ess[0] > 0.99 and 0.3 < min(ess) < 0.95
  assert clipped[0] == 0 and 0 < max(clipped) < 50
