"""docs/tasks.md: its files are made, its commands read, its tasks loaded and judged."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tis_jax import models, tasks
from tis_jax.runner import read_config
from tis_jax.runner.commands import evaluate
from tis_jax.runner.overrides import override
from tis_jax.runner.recipes import load_recipe
from tis_jax.runner.setup import build
from tis_jax.tasks import CAUSES, REWARDS, Environment, table

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The working directory of somebody who has followed the page."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  rows = block("json")
  rows += "".join(f'{{"question": "{i}+1=", "total": {i + 1}}}\n' for i in range(40))
  (tmp_path / "sums.jsonl").write_text(rows)
  (tmp_path / "mine.py").write_text(block('python title="mine.py"'))
  return tmp_path


def block(head):
  (found,) = re.findall(rf"^```{head}\n(.*?)^```", PAGE, re.M | re.S)
  return found


def commands(word):
  shown = re.findall(rf"^tis {word} ((?:.*\\\n)*.*)$", PAGE, re.M)
  return [text.replace("\\\n", " ").split() for text in shown]


def test_the_python_runs(folder):
  code = block('python title="from Python"')
  exec(compile(code, "tasks.md", "exec"), {})  # the page is ours


@pytest.mark.parametrize("which", [0, 1])
def test_the_commands_name_tasks_that_load(folder, which):
  recipe, _, *settings = commands("train")[which]
  config = load_recipe(recipe.partition("=")[2])
  override(config, settings)
  parts = build(read_config(config))
  assert parts.prompts >= 30


def test_the_function_is_judged_as_the_page_says(folder):
  task = tasks.load("mine.py", largest=40)
  tokenizer = models.load("builtin:arithmetic")[2]
  with Environment(task, tokenizer, task.train, 8) as environment:
    answers = np.array([tokenizer.encode("11")] * 2, np.int32)
    index, mask = np.array([0, 1]), np.ones((2, 2), bool)
    assert environment.rewards(index, answers, mask).tolist() == [1, 0]
    found = environment.named_rewards(index, answers, mask)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)


def test_rewards_causes_and_options_are_on_the_page(capsys):
  assert all(f"`{name}`" in PAGE for name in REWARDS)
  assert all(f"`rollouts/reward_{cause}`" in PAGE for cause in CAUSES)
  options = table.load.__code__.co_varnames[: table.load.__code__.co_argcount]
  assert all(f"`{name}`" in PAGE for name in options if name != "name")
  with pytest.raises(SystemExit):
    evaluate.main(["--help"])
  known = capsys.readouterr().out
  typed = [x for argv in commands("evaluate") for x in argv if x.startswith("--")]
  for option in [x.partition("=")[0] for x in typed] + ["--passes", "--json"]:
    assert f"{option} " in known and option in PAGE
