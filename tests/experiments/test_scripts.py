"""The scripts as they are typed: a study's values, and an environment not entered."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tis_jax.runner import default_config
from tis_jax.runner.overrides import override

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def study():
  spec = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


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


def test_a_study_varies_what_has_commas(study):
  stages = ["algorithm.correction.stages", "veto,truncate", "truncate"]
  found = study.combinations([stages, ["seed", "0", "1"]])
  assert [tuple(settings.values()) for settings in found] == [
    ("veto,truncate", "0"),
    ("veto,truncate", "1"),
    ("truncate", "0"),
    ("truncate", "1"),
  ]
  config = default_config()
  override(config, [f"--config.{name}={value}" for name, value in found[1].items()])
  assert config.algorithm.correction.stages == ("veto", "truncate")
  assert config.seed == 1
  assert study.combinations([]) == [{}]


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--vary=seed=0,1,2"], "separated by spaces: --vary seed 0 1 2"),
    (["--vary", "seed=0", "1"], "separated by spaces: --vary seed 0 1"),
    (["--vary", "seed", "0,1,2"], "--vary seed 0,1,2: values are separated by spaces"),
    (["--vary", "seed"], "--vary seed: values are separated by spaces"),
    (["--vary", "seed", "0", "--vary", "seed", "1"], "--vary seed is given twice"),
  ],
)
def test_values_that_are_separated_otherwise_are_refused(argv, says, tmp_path):
  code, _, errors = script("study.py", "--config=c", f"--workdir={tmp_path}", *argv)
  assert code == 2
  assert says in errors


def test_a_study_shows_the_runs_it_finds(tmp_path):
  for stages, gain in (("veto,truncate", 0.5), ("truncate", 0.25)):
    workdir = tmp_path / f"stages-{stages}"
    workdir.mkdir()
    (workdir / "summary.json").write_text(json.dumps({"pass_at_1/gain": gain}))
  vary = ["--vary", "algorithm.correction.stages", "veto,truncate", "truncate"]
  argv = ["--config=c", f"--workdir={tmp_path}", *vary, "--columns", "pass_at_1/gain"]
  code, table, errors = script("study.py", *argv)
  assert code == 0, errors
  assert table.splitlines()[:4] == [
    "| algorithm.correction.stages | pass_at_1/gain |",
    "|---|---|",
    "| veto,truncate | 0.5 |",
    "| truncate | 0.25 |",
  ]


def test_the_commands_that_the_pages_show_are_understood(study):
  shown = []
  for page in (FOLDER.parent / "docs").glob("*.md"):
    for line in page.read_text().replace("\\\n", " ").splitlines():
      if "--vary" in line:
        words = line.split()[line.split().index("--vary") + 1 :]
        ends = [i for i, word in enumerate(words) if word.startswith("--")]
        shown.append(words[: min(ends, default=len(words))])
  assert shown
  assert len(study.combinations(shown)) > 1


@pytest.mark.parametrize(
  "name", ["train.py", "evaluate.py", "sample.py", "pretrain.py", "make_gsm8k_steps.py"]
)
def test_a_script_outside_its_environment_says_how_to_enter_it(name):
  # Without `site`, an interpreter has nothing but its own library.
  code, _, errors = script(name, "--help", python=("-S",))
  assert code == 1
  assert "Traceback" not in errors
  assert all(
    words in errors for words in ("has no ", "make setup", ". .venv/bin/activate")
  )


def test_a_study_outside_its_environment_ends_with_the_first_run(tmp_path):
  argv = ["--config=c", f"--workdir={tmp_path}", "--vary", "seed", "0", "1"]
  code, _, errors = script("study.py", *argv, python=("-S",))
  assert code == 1
  assert "Traceback" not in errors
  assert f"the run in {tmp_path / 'seed-0'} failed" in errors
