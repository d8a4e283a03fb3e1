"""Runs whose task is the user's: a Python file, a table, and rewards that fail."""

import json
import math

import numpy as np
import pytest
from tiny_run import small

from tis_jax import models
from tis_jax.learner import load_batch
from tis_jax.runner import ConfigError, EvaluationPlan, evaluate_run, logs, train
from tis_jax.runner.settings import read_config
from tis_jax.runner.setup import assignment, build
from tis_jax.tasks import MissingDatasetError

MINE = '''
import json
from pathlib import Path

from tis_jax.tasks import Example, Task

HERE = Path(__file__).parent

def load(folder=""):
  """Longer answers are better, and some cannot be judged."""
  examples = [Example(i, f"{i}+{i}=", str(2 * i)) for i in range(10, 50)]
  return Task("mine", examples[:32], examples[32:], reward, rewards={"short": short})

def reward(completion, example):
  if "9" in completion or "6" in completion:
    raise RuntimeError("nines are not for me")
  return len(completion) / 10

def short(completion, example):
  return float("nan") if "4" in completion else 1.0 / (1 + len(completion))
'''


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """The task's folder as the working directory; the samplers are told none of it."""
  folder = tmp_path / "mine"
  folder.mkdir()
  (folder / "mine.py").write_text(MINE)
  monkeypatch.chdir(folder)
  return tmp_path


def rows_of(workdir):
  batch, _ = load_batch(workdir / "batch.npz")
  tokenizer = models.load("builtin:arithmetic")[2]
  texts = [
    tokenizer.decode(row[there])
    for row, there in zip(batch.tokens, batch.tokens > 0, strict=True)
  ]
  return batch, texts


@pytest.mark.slow
def test_a_task_in_a_python_file_trains_and_its_failing_rewards_are_set_aside(
  elsewhere, capfd, monkeypatch
):
  workdir = elsewhere / "run"
  workdir.mkdir()
  own = {"data.task": "mine.py", "algorithm.advantage.name": "gdpo"}
  config = small(workdir, 2, **own)
  config.algorithm.advantage.gdpo.weights = {"short": 1.0}
  summary = train(config, workdir)
  assert summary["rollouts/trained"] == 16
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0

  batch, texts = rows_of(workdir)
  aborted = batch.finish_reasons == 2
  for row in range(8):
    if aborted[row]:
      # It trains nothing, and nothing of it is NaN.
      assert not batch.mask[row].any()
      assert batch.rewards[row] == 0 and not batch.named_rewards[row].any()
    else:
      assert not set(texts[row]) & set("469")
      assert batch.rewards[row] == np.float32(len(texts[row]) / 10)
      assert batch.named_rewards[row, 0] == np.float32(1 / (1 + len(texts[row])))
  logged = logs.read_metrics(workdir / "metrics.jsonl")
  rows = [row for row in logged if "loss/total" in row]
  assert all(math.isfinite(row["loss/total"]) for row in rows)

  # What was counted by cause is what was set aside, or more: samplers are ahead.
  log = (workdir / "samplers" / "local0.log").read_text()
  raised = summary.get("rollouts/reward_raised", 0)
  no_number = summary.get("rollouts/reward_no_number", 0)
  assert raised + no_number >= 1
  assert "answers without a reward: " in log
  assert "RuntimeError: nines are not for me (line" in log or not raised
  assert "no_number (the reward short gave nan)" in log or not no_number
  assert rows[-1].get("rollouts/reward_raised", 0) <= raised
  shares = [row["response/aborted"] for row in rows]
  assert sum(shares) > 0 and raised + no_number >= round(8 * sum(shares))

  # From another folder, and with evaluations that fail: wrong, and said.
  monkeypatch.chdir(elsewhere)
  assert json.loads((workdir / "config.json").read_text())["data"]["task"] == str(
    elsewhere / "mine" / "mine.py"
  )
  report = evaluate_run(workdir, EvaluationPlan(samples=4, passes=0.1, ks=(1, 4)))
  scores = report.scores["float32"]
  assert 0 < scores.unrewarded < 32
  assert report.about["prompts"] == len(scores.by_prompt["reward"]) == 8
  shown = evaluate_run(workdir, EvaluationPlan(samples=1, split="train"))
  assert shown.about["prompts"] == 32
  assert 0 < scores.by_prompt["pass@1"].mean() < 1
  assert any("nines are not for me" in note for note in report.notes)
  assert sum(row.get("eval/unrewarded", 0) for row in logged) > 0


@pytest.mark.slow
def test_a_table_needs_no_code(elsewhere):
  folder, workdir = elsewhere / "mine", elsewhere / "run"
  workdir.mkdir()
  rows = [{"sum": f"{i}+{i}=", "total": 2 * i, "i": i} for i in range(10, 90)]
  rows.insert(7, {"sum": "", "total": 1})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "sums.jsonl").write_text(text)
  config = small(workdir, 1, **{"data.task": "table"})
  with config.unlocked():
    config.data.options = {
      "path": "sums.jsonl",
      "prompt": "sum",
      "answer": "total",
      "reward": "number",
    }
  summary = train(config, workdir)
  assert summary["rollouts/trained"] == 8
  batch, texts = rows_of(workdir)
  tokenizer = models.load("builtin:arithmetic")[2]
  for row in range(8):
    prompt = tokenizer.decode(batch.prompts[row][batch.prompt_mask[row]])
    want = 2 * int(prompt.split("+")[0])
    right = texts[row].isdecimal() and int(texts[row]) == want
    assert batch.rewards[row] == float(right) or not texts[row].isdecimal()
  log = (workdir / "samplers" / "local0.log").read_text()
  assert "1 row of the table left out: line 8 of" in log


def parts_of(workdir, **changes):
  options = changes.pop("options", {})
  config = small(workdir, 1, **{k.replace("__", "."): v for k, v in changes.items()})
  with config.unlocked():
    config.data.options = options
  return build(read_config(config))


@pytest.mark.parametrize(
  ("task", "options", "message"),
  [
    ("gsm8", {}, "data.task must be one of 'gsm8k'"),
    ("nowhere.py", {}, r"there is no file .*nowhere\.py"),
    ("no_such_package:load", {}, "no_such_package cannot be imported"),
    ("mine.py:laod", {}, "has no function 'laod'; did you mean 'load'"),
    ("mine.py", {"foldr": "x"}, "data.options has no setting 'foldr'; did you mean"),
    ("table", {"path": "sums.jsonl", "answr": "x"}, "did you mean 'answer'"),
  ],
)
def test_what_cannot_be_loaded_is_said_before_anything_starts(
  task, options, message, elsewhere
):
  with pytest.raises(ConfigError, match=message):
    parts_of(elsewhere, data__task=task, options=options)
  assert not (elsewhere / "store").exists()


def test_a_missing_table_is_a_missing_data_set(elsewhere):
  with pytest.raises(MissingDatasetError, match=r"there is no table .*sums\.jsonl"):
    parts_of(elsewhere, data__task="table", options={"path": "sums.jsonl"})


def test_samplers_are_told_absolute_paths_and_limits(elsewhere):
  config = small(elsewhere, 1, **{"data.task": "mine.py", "data.reward_seconds": 3.0})
  told = assignment(read_config(config))
  assert told.task == str(elsewhere / "mine" / "mine.py")
  assert (told.reward_seconds, told.reward_processes) == (3.0, 2)


@pytest.mark.parametrize(
  "change", [{"data.reward_seconds": 0.0}, {"data.reward_processes": 0}]
)
def test_limits_outside_their_range_are_refused(change, tmp_path):
  with pytest.raises(ConfigError, match=next(iter(change)).partition(".")[2]):
    read_config(small(tmp_path, 1, **change))
