"""The scripts as they are typed, in an environment that was not entered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tis_jax.runner.study import plan, varied

FOLDER = Path(__file__).parents[2] / "experiments"


def script(name, *argv, python=()):
  """Runs a script in a process of its own: `(code, output, errors)`."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, *python, FOLDER / name, *argv],
    capture_output=True,
    text=True,
    timeout=120,
    env=environment,
  )
  return done.returncode, done.stdout, done.stderr


def test_the_commands_that_the_pages_show_are_understood():
  commands = []
  for page in (FOLDER.parent / "docs").glob("*.md"):
    for line in page.read_text().replace("\\\n", " ").splitlines():
      settings = [words.split() for words in line.split("--")]
      varied_settings = [words[1:] for words in settings if words[:1] == ["vary"]]
      if varied_settings:
        commands.append(varied_settings)
  assert len(commands) >= 3
  for settings in commands:
    assert len(plan(varied("quickstart", settings))) > 1, settings


@pytest.mark.parametrize(
  "name",
  [
    *("train.py", "evaluate.py", "sample.py", "study.py"),
    *("pretrain.py", "make_gsm8k_steps.py", "make_notebook_batches.py"),
  ],
)
def test_a_script_outside_its_environment_says_how_to_enter_it(name):
  # Without `site`, an interpreter has nothing but its own library.
  code, _, errors = script(name, "--help", python=("-S",))
  assert code == 1
  assert "Traceback" not in errors
  assert all(
    words in errors for words in ("has no ", "make setup", ". .venv/bin/activate")
  )
