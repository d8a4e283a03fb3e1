"""Anyone's task: functions by module or file, and what is wrong with them in words."""

import subprocess
import sys

import pytest

from tis_jax import tasks
from tis_jax.models import CharacterTokenizer
from tis_jax.tasks import Environment, Task, TaskError
from tis_jax.tasks.imported import absolute, imported

MINE = """
from helper_of_mine import RIGHT

from tis_jax.tasks import Example, Task

def load(size=4):
  examples = [Example(i, f"{i}+1=", str(i + 1)) for i in range(size)]
  return Task("mine", examples[1:], examples[:1], reward)

def reward(completion, example):
  return RIGHT if completion == example.answer else 0.0

def other():
  return load(size=3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "path", list(sys.path))
  (tmp_path / "mine.py").write_text(MINE)
  (tmp_path / "helper_of_mine.py").write_text("RIGHT = 0.75\n")
  yield tmp_path
  for name in [x for x in sys.modules if x.startswith(("helper_of_mine", "mine_"))]:
    del sys.modules[name]


def test_a_file_has_a_task_and_imports_what_lies_beside_it(folder):
  task = tasks.load(str(folder / "mine.py"), size=5)
  assert (task.name, len(task.train), task.train[0].prompt) == ("mine", 4, "1+1=")
  assert task.reward("2", task.train[0]) == 0.75
  assert task.apart is True
  assert task.source == (str(folder / "mine.py"), {"size": 5})
  assert len(tasks.load(f"{folder}/mine.py:other").train) == 2


def test_a_relative_path_is_absolute_for_whoever_is_elsewhere(folder, monkeypatch):
  monkeypatch.chdir(folder)
  assert absolute("mine.py:other") == f"{folder / 'mine.py'}:other"
  assert tasks.load("mine.py").source.name == str(folder / "mine.py")
  assert tasks.settled("mine.py", {"a": 1}) == (str(folder / "mine.py"), {"a": 1})
  assert tasks.settled("gsm8k", {}) == ("gsm8k", {})


def test_a_module_is_looked_for_in_the_working_directory(folder):
  (folder / "mine_package").mkdir()
  (folder / "mine_package" / "sums.py").write_text(MINE)
  code = (
    "from tis_jax import tasks\n"
    "print(len(tasks.load('mine_package.sums:load', size=9).train))"
  )
  # -P: a script's folder, and no working directory, as the command `tis` has it.
  command = [sys.executable, "-P", "-c", code]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  assert done.stdout.strip() == "8", done.stderr


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def laod(): pass", "has no function 'load'; did you mean 'laod'"),
    ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError: No module"),
    ("x = 1\nx.y", r"AttributeError: .* \(line 2 of .*bad.py\)"),
    ("def load(: pass", "cannot be imported: SyntaxError"),
    ("raise SystemExit('no')", "cannot be imported: SystemExit: no"),
    ("def load():\n  return 1 / 0", r"ZeroDivisionError: .* \(line 2 of .*bad.py\)"),
    ("def load():\n  return 3", "gave a int, not a tis_jax.tasks.Task"),
    (
      "from tis_jax.tasks import Task\n"
      "def load(): return Task('t', [], [], lambda c, e: 0)",
      "has no train examples",
    ),
    (
      "from tis_jax.tasks import Task\n"
      "def load(): return Task('t', ['1'], ['2'], lambda c, e: 0)",
      r"train\[0\] is a str, not a tasks.Example",
    ),
    (
      "from tis_jax.tasks import Task, Example\n"
      "x = [Example(0, 'a', 'b')]\n"
      "def load(): return Task('t', x, x, 'exact')",
      "reward is 'exact', not a function",
    ),
  ],
)
def test_what_is_wrong_with_a_file_is_said(text, message, tmp_path):
  (tmp_path / "bad.py").write_text(text)
  with pytest.raises(TaskError, match=message):
    tasks.load(str(tmp_path / "bad.py"))


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(TaskError, match=r"there is no file .*nowhere\.py"):
    tasks.load(str(tmp_path / "nowhere.py"))
  with pytest.raises(TaskError, match="no_such_package cannot be imported"):
    tasks.load("no_such_package:load")
  with pytest.raises(ValueError, match="did you mean 'gsm8k_steps'"):
    tasks.load("gsm8k_step")
  assert imported("json:loads")("1") == 1


class Templated(CharacterTokenizer):
  """With a chat template, if it is told so."""

  has_chat_template = True

  def chat(self, prompt):
    return f"={prompt}="


@pytest.mark.parametrize(
  ("tokenizer", "chat", "length", "noted"),
  [
    (Templated, True, 4, False),
    (Templated, None, 4, False),
    (Templated, False, 2, False),
    (CharacterTokenizer, None, 2, True),
    (CharacterTokenizer, False, 2, False),
  ],
)
def test_a_chat_template_is_used_where_there_is_one(tokenizer, chat, length, noted):
  task = Task("t", [tasks.Example(0, "1+", "2")], [], lambda c, e: 0, chat=chat)
  environment = Environment(task, tokenizer("0123456789+="), task.train, 8)
  assert environment.prompts.mask.sum() == length
  assert ("no chat template" in "".join(environment.notes)) == noted


def test_a_template_that_is_asked_for_and_is_not_there_is_an_error():
  task = Task("t", [tasks.Example(0, "1+", "2")], [], lambda c, e: 0, chat=True)
  with pytest.raises(TaskError, match=r"chat=True.* none: set chat .*data\.options"):
    Environment(task, CharacterTokenizer("12+"), task.train, 8)


def test_prompts_that_cannot_be_used_are_named_and_the_rest_goes_on():
  examples = [
    tasks.Example(i, prompt, "2")
    for i, prompt in enumerate(["1+", "", "why?", "1+1+1", "  ", "2+"])
  ]
  task = Task("t", examples, [], lambda c, e: 0)
  environment = Environment(task, CharacterTokenizer("12+"), examples, 4)
  assert environment.ids.tolist() == [0, 5]
  (note,) = environment.notes
  assert note.startswith("4 of 6 prompts left out: example 1 has an empty prompt; ")
  assert "example 2 has a prompt that cannot be encoded: 'why?'" in note
  assert "example 3 has 5 tokens, more than 4; ..." in note
  with pytest.raises(ValueError, match=r"none of 1 prompts .*example 1 has an empty"):
    Environment(task, CharacterTokenizer("12+"), examples[1:2], 4)
