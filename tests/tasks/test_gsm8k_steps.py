"""The calculator steps: counts, the subset, and the TFDS builder."""

import re
from fractions import Fraction

import pytest

from tis_jax import tasks
from tis_jax.tasks import gsm8k_steps


def test_splits_share_no_step():
  train, test = (gsm8k_steps.read_steps(split) for split in ("train", "test"))
  assert (len(set(train)), len(set(test))) == (len(train), len(test)) == (11021, 1434)
  assert not set(train) & set(test)


@pytest.mark.parametrize(
  ("limits", "sizes"),
  [
    ({}, (5541, 554)),
    ({"max_length": 6, "max_digits": 3}, (4303, 402)),
    ({"max_operands": 3, "max_length": 9}, None),
  ],
)
def test_subset_is_right_and_unseen(limits, sizes):
  task = tasks.load("gsm8k_steps", **limits)
  if sizes:
    assert (len(task.train), len(task.test)) == sizes
  train = {e.prompt for e in task.train}
  assert len(train) == len(task.train)
  assert not train & {e.prompt for e in task.test}
  for e in task.train + task.test:
    assert len(e.prompt) - 1 <= limits.get("max_length", 7)
    assert len(e.answer) <= limits.get("max_digits", 4)
    numbers = re.findall(r"\d+", e.prompt)
    assert 2 <= len(numbers) <= limits.get("max_operands", 2)
    # GSM8K's own arithmetic, recomputed exactly.
    exact = re.sub(r"\d+", lambda n: f"Fraction({n[0]})", e.prompt[:-1])
    assert eval(exact, {"Fraction": Fraction}) == int(e.answer), e


def test_reward_is_the_number_not_its_spelling():
  task = tasks.load("gsm8k_steps")
  example = task.train[0]
  assert (example.prompt, example.answer) == ("48/2=", "24")
  for right in ("24", "24.0", "024"):
    assert task.reward(right, example) == 1.0
  for wrong in ("", "2", "-24", "24=", "24 24", "4", "nan"):
    assert task.reward(wrong, example) == 0.0


def test_builder_serves_the_same_steps(tmp_path):
  from tis_jax.tasks.gsm8k_steps.builder import Gsm8kSteps

  builder = Gsm8kSteps(data_dir=tmp_path)
  builder.download_and_prepare()
  for split in ("train", "test"):
    rows = builder.as_data_source(split=split)
    steps = {f"{row['expression'].decode()}={row['result'].decode()}" for row in rows}
    assert steps == set(gsm8k_steps.read_steps(split))


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="gsm8k_steps"):
    tasks.load("gsm8k_step")
  with pytest.raises(TypeError, match="max_len"):
    tasks.load("gsm8k_steps", max_len=3)
