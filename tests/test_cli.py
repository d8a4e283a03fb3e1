"""The `tis` command, as it is typed."""

import subprocess
import sys

import pytest

from tis_jax.cli import COMMANDS


def tis(*argv, before="pass"):
  """Runs a command line in a process of its own: `(code, output, errors)`."""
  code = f"import sys; {before}; from tis_jax.cli import main; main(sys.argv[1:])"
  done = subprocess.run(
    [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120
  )
  return done.returncode, done.stdout, done.stderr


def test_without_a_command_it_says_what_there_is():
  code, out, _ = tis()
  assert code == 0
  assert all(name in out and x.summary in out for name, x in COMMANDS.items())


def test_an_unknown_command_is_named():
  code, _, err = tis("trian")
  assert code == 1
  assert err.startswith("tis: no command 'trian'; there are train")


def test_a_missing_package_says_what_to_install():
  code, _, err = tis("train", before="sys.modules['ml_collections'] = None")
  assert code == 1
  assert err.strip().endswith('not installed: pip install "tis_jax[train]"')
  assert "Traceback" not in err


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--config=quickstrat"], "did you mean 'quickstart'"),
    (["--config=quickstart", "--config.train.step=3"], "did you mean 'steps'"),
    (["--config=quickstart", "--config.data.task=gsm8"], "data.task must be one of"),
    (
      ["--config=quickstart", "--config.data.options.max_lenth=9"],
      "data.options has no setting 'max_lenth'; did you mean 'max_length'",
    ),
  ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_workdir(argv, message, tmp_path):
  workdir = tmp_path / "run"
  code, _, err = tis("train", *argv, f"--workdir={workdir}")
  assert code == 1
  assert message in err
  assert "Traceback" not in err
  assert not workdir.exists()


def test_a_folder_without_a_run_is_named(tmp_path):
  code, _, err = tis("evaluate", f"--workdir={tmp_path}")
  assert code == 1
  assert err.strip() == f"FileNotFoundError: {tmp_path} holds no run"
