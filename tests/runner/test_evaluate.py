"""pass@k and maj@k against all choices counted out; `tis evaluate` as it is typed."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny_run import small

from tis_jax import models
from tis_jax.runner import (
  ConfigError,
  EvaluationPlan,
  evaluate_store,
  majority_at_k,
  pass_at_k,
  scored,
)
from tis_jax.runner.commands import evaluate as command
from tis_jax.runner.evaluate import Sampled
from tis_jax.runner.settings import read_config
from tis_jax.runner.setup import assignment
from tis_jax.store import ParamsGoneError, Store


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_mean_over_all_choices(passed, k):
  if k > len(passed):
    with pytest.raises(ValueError, match=f"k={k} of {len(passed)} answers"):
      pass_at_k(np.array([passed]), k)
    return
  chosen = [any(x) for x in itertools.combinations(passed, k)]
  np.testing.assert_allclose(pass_at_k(np.array([passed]), k), np.mean(chosen))


def test_pass_at_k_of_many_answers_is_exact():
  passed = np.arange(400)[None] < np.array([[0], [1], [7], [399], [400]])
  want = [
    1 - math.comb(400 - c, 100) / math.comb(400, 100) for c in (0, 1, 7, 399, 400)
  ]
  np.testing.assert_allclose(pass_at_k(passed, 100), want, rtol=1e-12)


def test_the_majority_of_each_block_votes():
  answers = [
    ["1", "2", "2", "3", "1", "1", "9"],  # 2 and 1 win; the seventh is left over
    ["1", "2", "3", None, None, "5", "5"],  # a tie is the first's; 5 is alone
    [None] * 7,  # nobody votes
    ["7", None, None, "8", "7", "7", "7"],  # what says nothing has no vote
  ]
  right = np.array(
    [[x == y for x in row] for row, y in zip(answers, "2157", strict=True)]
  )
  right[2] = True
  found = majority_at_k(right, answers, 3)
  np.testing.assert_array_equal(found, [0.5, 0.5, 0.0, 1.0])
  np.testing.assert_array_equal(majority_at_k(right, answers, 7), [0, 0, 0, 1])


def test_scores_count_what_has_no_reward_as_wrong_and_say_how_many():
  rewards = np.array([[1.0, np.nan, 0.4], [0.4, 0.4, np.nan], [1.0, 1.0, 1.0]])
  answers = [["1", "1", "2"], ["3", "3", "4"], ["5", "5", "5"]]
  scores = scored(Sampled(rewards, np.full((3, 3), 2), answers), [1, 3])
  assert scores.unrewarded == 2 and scores.length == 2.0
  found = {name: values.tolist() for name, values in scores.by_prompt.items()}
  assert found["pass@1"] == pytest.approx([1 / 3, 0, 1])
  assert found["pass@3"] == [1, 0, 1]
  assert found["maj@3"] == [1, 0, 1]
  assert found["reward"] == pytest.approx([1.4 / 3, 0.8 / 3, 1])
  low = scored(Sampled(rewards, np.ones((3, 3)), answers), [1], passes=0.4)
  assert low.by_prompt["pass@1"].tolist() == pytest.approx([2 / 3, 2 / 3, 1])
  half = scores.intervals()["pass@1"].half
  # Student's t of the mean over three prompts.
  want = stats.t.interval(0.95, 2, scale=stats.sem([1 / 3, 0, 1]))[1]
  assert half == pytest.approx(want)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"ks": (9,)}, "k must be at least 1 and at most 8, got 9"),
    ({"split": "dev"}, "split must be one of 'train', 'test'"),
    ({"precisions": ("fp8",)}, "precision must be one of"),
    ({"precisions": ("float32", "float32")}, "give each once"),
    ({"temperature": -1.0}, "temperature must be at least 0"),
  ],
)
def test_impossible_plans_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    EvaluationPlan(**change)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """The base policy in fp32, published as version 3, and zeros as version 4."""
  folder = tmp_path_factory.mktemp("published")
  settings = read_config(small(folder, 1))
  url = (folder / "store").as_uri()
  store = Store.open(url, "r", create=True, config=assignment(settings).to_json())
  params = jax.device_get(models.flatten(models.load("builtin:arithmetic")[1]))
  store.publish(3, params, {"cursor": {}})
  store.publish(4, {x: np.zeros_like(a) for x, a in params.items()}, {"cursor": {}})
  return store


def test_a_published_version_is_evaluated_on_any_split(store):
  plan = EvaluationPlan(prompts=32, samples=4, ks=(1, 4), split="train")
  report = evaluate_store(store.url, plan, version=3)
  scores = report.scores["float32"]
  assert report.about["policy"] == "version 3 (float32)"
  assert (report.about["split"], report.about["prompts"]) == ("train", 32)
  means = {name: found.mean for name, found in scores.intervals().items()}
  # The base gets about half of its train prompts right.
  assert 0.2 < means["pass@1"] < 0.9
  assert means["pass@1"] == pytest.approx(means["reward"])
  assert means["pass@1"] < means["pass@4"] <= 1
  newest = evaluate_store(store.url, plan)
  assert newest.about["policy"].startswith("version 4")
  assert newest.scores["float32"].intervals()["pass@1"].mean < 0.1
  with pytest.raises(ParamsGoneError, match="has no version 9 of the params"):
    evaluate_store(store.url, plan, version=9)


def test_precisions_stand_side_by_side_and_their_difference_is_paired(
  store, tmp_path, capsys
):
  path = tmp_path / "found.json"
  where = [f"--store={store.url}", "--version=3", "--prompts=16", "--samples=4"]
  how = ["--k", "1", "4", "--precision", "float32", "bfloat16", "--json", str(path)]
  command.main([*where, *how])
  told, shown = json.loads(path.read_text()), capsys.readouterr().out
  assert (told["prompts"], told["samples"], told["split"]) == (16, 4, "test")
  full, half = told["scores"]["float32"], told["scores"]["bfloat16"]
  assert full.keys() >= {"reward", "pass@1", "pass@4", "maj@4", "length", "unrewarded"}
  difference = told["differences"]["bfloat16 - float32"]["pass@1"]
  assert difference["mean"] == pytest.approx(
    half["pass@1"]["mean"] - full["pass@1"]["mean"]
  )
  # The same prompts and the same noise: less is between them than within each.
  assert difference["half"] < half["pass@1"]["half"]
  header, *rows = shown.splitlines()[1:]
  assert header.split("  ")[-1].strip() == "bfloat16 - float32"
  assert {row.split("  ")[0].strip() for row in rows} >= {"pass@1", "maj@4"}
  assert f"{full['pass@1']['mean']:.4f} ±" in shown


def test_what_is_wrong_on_the_command_line_is_a_sentence(store, tmp_path):
  with pytest.raises(SystemExit, match="ConfigError: k must be at least 1"):
    command.main([f"--store={store.url}", "--samples=2", "--k", "3"])
  with pytest.raises(SystemExit, match=r"FileNotFoundError: .* holds no run"):
    command.main([f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit):
    command.main([f"--workdir={tmp_path}", "--version=3"])


def test_a_split_that_does_not_fit_is_said(store):
  told = dict(store.config) | {"max_prompt_tokens": 2}
  narrow = Store.open(store.url, "r", create=True, config=told)
  with pytest.raises(ConfigError, match="fits in 2 tokens"):
    evaluate_store(narrow.url, version=3)
