"""Rewards that raise, hang and crash: each costs its own answer, and nothing else."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tis_jax import tasks
from tis_jax.models import CharacterTokenizer
from tis_jax.tasks import Environment, RewardPool, Source, TaskError
from tis_jax.tasks.pool import Asked

TOKENIZER = CharacterTokenizer("0123456789+=")

MINE = """
import asyncio, os, subprocess, sys, time  # and no jax
from pathlib import Path

from tis_jax.tasks import Example, Task

def load(seen=""):
  def reward(completion, example):
    if seen:
      Path(seen, f"{os.getpid()}").touch()
    if completion == "0":
      while True:
        pass
    if completion == "1":
      return 1 / 0
    if completion == "2":
      os._exit(7)
    if completion == "3":
      return float("nan")
    if completion == "4":
      child = subprocess.Popen(["sleep", "600"])
      Path(seen, f"child-{child.pid}").touch()
      time.sleep(600)
    if completion == "5":
      return "0.5"
    return int(completion) / 16 + 0.001 * len(example.extra or ())

  async def waited(completion, example):
    await asyncio.sleep(0.01)
    return 0.5 if "jax" not in sys.modules else None

  def half(completion, example):
    return None if completion == "9" else 0.5

  examples = [Example(i, f"{i}+1=", str(i + 1), {"a": 1}) for i in range(6)]
  return Task(
    "mine", examples[:4], examples[4:], reward,
    rewards={"waited": waited, "half": half},
    answer_of=lambda completion: int(completion) % 2,
  )
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mine")
  (folder / "mine.py").write_text(MINE)
  return Source(str(folder / "mine.py"), {"seen": str(folder)})


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  with open(f"/proc/{pid}/stat") as file:
    return file.read().rpartition(")")[2].split()[0] != "Z"


def test_each_answer_has_its_own_verdict_in_order(source, tmp_path):
  example = tasks.Example(0, "1+1=", "2", {"a": 1})
  texts = ["8", "0", "1", "2", "3", "5", "9", "4", "16"]
  own = Source(source.name, {"seen": str(tmp_path)})
  with RewardPool(own, processes=2, seconds=0.5) as pool:
    began = time.monotonic()
    found = pool.judge([Asked("reward", text, example) for text in texts])
    causes = ["", "hung", "raised", "died", "no_number", "no_number", "", "hung", ""]
    assert [verdict.cause for verdict in found] == causes
    assert found[0].values == (8 / 16 + 0.001,) and found[8].values == (1.001,)
    assert found[1].said == "it took more than 0.5 s (data.reward_seconds)"
    assert found[2].said.startswith("ZeroDivisionError: division by zero (line ")
    assert found[2].said.endswith("mine.py)")
    assert found[3].said == "its process ended by exit code 7"
    assert found[4].said == "the reward reward gave nan"
    assert found[5].said == "the reward reward gave '0.5'"
    assert time.monotonic() - began < 60
    named = [Asked("rewards", text, example) for text in ("8", "9")]
    assert [x.values for x in pool.judge(named)] == [(0.5, 0.5), ()]
    asked = [Asked("answer", text, example) for text in ("7", "8", "x")]
    assert pool.judge(asked) == [1, 0, None]
  started = [int(x.name.rpartition("-")[2]) for x in tmp_path.iterdir()]
  # Four processes at least, and what one of them had started itself.
  assert len(started) >= 4 and len(list(tmp_path.glob("child-*"))) == 1
  deadline = time.monotonic() + 10
  while any(map(alive, started)):
    assert time.monotonic() < deadline, "a process outlives the pool"
    time.sleep(0.05)


def test_a_question_that_was_broken_off_leaves_nothing_behind(source, monkeypatch):
  example = tasks.Example(0, "1+1=", "2")
  with RewardPool(source, processes=1, seconds=20) as pool:
    pool.judge([Asked("answer", "8", example)])

    def interrupted(*_):
      raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      patch.setattr("tis_jax.tasks.pool.wait", interrupted)
      pool.judge([Asked("answer", "7", example)])
    assert pool.judge([Asked("reward", "8", example)])[0].values == (0.5,)


def test_a_task_that_cannot_be_loaded_there_is_said():
  for name, message in {
    "no_such_package:load": "no_such_package cannot be imported",
    "os:_exit": "end while they load it",
    "json:loads": "json:loads: TypeError",
  }.items():
    options = {"status": 3} if name == "os:_exit" else {}
    with (
      RewardPool(Source(name, options), processes=1) as pool,
      pytest.raises(TaskError, match=message),
    ):
      pool.judge([Asked("reward", "", tasks.Example(0, "", ""))])


def test_rewards_that_all_hang_are_named_early(source, monkeypatch):
  # Of eight, as it is, each would cost a process.
  monkeypatch.setattr("tis_jax.tasks.pool._ALL_HANG", 3)
  asked = [Asked("reward", "0", tasks.Example(0, "1+1=", "2"))] * 100
  began = time.monotonic()
  with (
    RewardPool(source, processes=2, seconds=0.05) as pool,
    pytest.raises(
      TaskError, match=r"none of the first 3 completions was judged within"
    ),
  ):
    pool.judge(asked)
  assert time.monotonic() - began < 60
  # One that was judged is enough for the others to be set aside, each for itself.
  some = [asked[0]._replace(completion="8"), *asked[:4]]
  with RewardPool(source, processes=1, seconds=0.05) as pool:
    assert [x.cause for x in pool.judge(some)] == ["", *["hung"] * 4]


def environment(source, **limits):
  task = tasks.load(source.name, **source.options)
  return Environment(task, TOKENIZER, task.train, 8, **limits)


def encoded(*texts):
  tokens = np.array([[TOKENIZER.encode(text)[0], 1] for text in texts], np.int32)
  return np.arange(len(texts)) % 4, tokens, np.ones(tokens.shape, bool)


def test_what_has_no_reward_is_nan_and_counted_by_its_cause(source):
  with environment(source, reward_seconds=0.5, reward_processes=1) as mine:
    answers = encoded("8", "0", "1", "9", "1")
    rewards = mine.rewards(*answers)
    np.testing.assert_array_equal(
      np.isfinite(rewards), [True, False, False, True, False]
    )
    assert rewards[0] == np.float32(0.501) and rewards.dtype == np.float32
    assert mine.set_aside == {"hung": 1, "raised": 2}
    assert mine.said["raised"].startswith("ZeroDivisionError")
    named = mine.named_rewards(*answers, where=np.isfinite(rewards))
    assert named.shape == (5, 2) and named[0].tolist() == [0.5, 0.5]
    assert np.isnan(named[1:]).all()
    # One answer more: that to which `half` gave None. What was not judged is not.
    assert mine.set_aside == {"hung": 1, "raised": 2, "no_number": 1}
    assert mine.answers(*answers) == [0, 0, 1, 1, 1]


def test_a_reward_in_this_process_may_raise_too():
  def reward(completion, example):
    return 1 / (int(completion) - 1)

  examples = [tasks.Example(i, "1+1=", "2") for i in range(4)]
  task = tasks.Task("here", examples, [], reward)
  here = Environment(task, TOKENIZER, examples, 8)
  rewards = here.rewards(*encoded("3", "1", "2"))
  np.testing.assert_array_equal(rewards, np.float32([0.5, np.nan, 1]))
  assert here.set_aside == {"raised": 1}


@pytest.mark.parametrize(
  "value", [None, "1", b"1", float("inf"), 1e39, [1.0], {}, object(), 1j, 10**400]
)
def test_what_is_no_finite_number_is_no_reward(value):
  verdict = tasks.judge([lambda c, e: value], "", tasks.Example(0, "", ""))
  assert (verdict.values, verdict.cause) == ((), "no_number")


@pytest.mark.parametrize(
  "value", [True, 1, 1.0, np.float32(1), np.array(1), np.int8(1)]
)
def test_what_is_one_is(value):
  verdict = tasks.judge([lambda c, e: value], "", tasks.Example(0, "", ""))
  assert verdict == ((1.0,), "", "")


def test_a_task_that_nobody_knows_where_to_load_is_refused(source):
  examples = [tasks.Example(0, "1+1=", "2")]
  task = tasks.Task("mine", examples, [], lambda c, e: 0, apart=True)
  with pytest.raises(ValueError, match=r"have it from tis_jax\.tasks\.load"):
    Environment(task, TOKENIZER, examples, 8)


@pytest.mark.chaos
def test_a_process_ends_by_itself_when_nobody_is_left_to_end_it(source, tmp_path):
  # Whoever asked is gone, and the reward never comes back from its loop.
  code = f"""
import os, threading
from tis_jax.tasks import RewardPool, Example, Source
from tis_jax.tasks.pool import Asked

source = Source({source.name!r}, {{"seen": {str(tmp_path)!r}}})
pool = RewardPool(source, processes=1, seconds=0.5)
threading.Timer(4.0, os._exit, [9]).start()
pool.judge([Asked("reward", "8", Example(0, "", ""))])
pool._seconds = 100.0
pool.judge([Asked("reward", "0", Example(0, "", ""))])
"""
  done = subprocess.run([sys.executable, "-c", code], timeout=60)
  assert done.returncode == 9
  (pid,) = [int(x.name) for x in tmp_path.iterdir()]
  assert alive(pid), "it ended before it was left alone"
  deadline = time.monotonic() + 30
  while alive(pid):
    assert time.monotonic() < deadline, "it goes on without anybody"
    time.sleep(0.1)
