"""GSM8K with a calculator: what is asked, what it answers, what it pays."""

import json

import pytest

from tis_jax import tasks
from tis_jax.models import CharacterTokenizer


@pytest.fixture(scope="module")
def steps():
  return tasks.load("gsm8k_calculator", cost=0.1)


def test_the_calculator_is_right_about_every_step_in_the_policys_alphabet(steps):
  tokenizer = CharacterTokenizer("0123456789+-*/=")
  for example in (*steps.train, *steps.test):
    talk = steps.conversation(example)
    assert talk.reset() == example.prompt
    said, reward, done = talk.step("00")
    if example.answer == "0":
      assert (reward, done) == (1.0, True)
      continue
    assert (said, reward, done) == (f"={example.answer}", 0.0, False)
    tokenizer.encode(said)
    assert talk.step("") == ("", 0.9, True)


@pytest.mark.parametrize(
  ("turns", "rewards"),
  [
    (["24"], [1.0]),
    (["23"], [0.0]),
    ([""], [0.0]),
    (["2+2"], [0.0]),
    (["0", ""], [0.0, 0.9]),
    (["024", ""], [1.0]),  # that is 24
    (["0=", "24"], [0.0, 0.9]),
    (["09", "42"], [0.0, 0.0]),
  ],
)
def test_an_answer_ends_it_and_a_leading_0_asks(steps, turns, rewards):
  talk = steps.conversation(steps.train[0])
  for text, reward in zip(turns, rewards, strict=False):
    found = talk.step(text)
    assert found[1] == pytest.approx(reward)
  assert found[2]


def test_what_asking_costs_is_a_setting():
  task = tasks.load("gsm8k_calculator", max_operands=3, max_length=9)
  talk = task.conversation(task.train[0])
  talk.step("0")
  assert talk.step("")[1] == 1
  assert len(task.train) > len(tasks.load("gsm8k_steps").train)
  with pytest.raises(ValueError, match="cost"):
    tasks.load("gsm8k_calculator", cost=2.0)
  with pytest.raises(ValueError, match="form"):
    tasks.load("gsm8k_calculator", form="essay")


@pytest.fixture
def questions(tmp_path):
  row = {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24.\n#### 72"}
  for split in ("train", "test"):
    (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
  return tasks.load("gsm8k_calculator", form="questions", gsm8k_dir=str(tmp_path))


def test_questions_are_answered_call_by_call(questions):
  assert questions.chat is None  # A template where there is one.
  talk = questions.conversation(questions.train[0])
  assert talk.reset().startswith("How many clips?\nTo calculate")
  assert talk.step("In May <<48/2=") == ("48/2=24", 0.0, False)
  assert talk.step("<<1/3= and << 4/0 =")[0] == "1/3=0.3333\n4/0: it divides by zero"
  assert talk.step("Well.") == ("No <<...= to calculate, and no ####.", 0.0, False)
  assert talk.step("#### 72 clips")[1:] == (1.0, True)
  assert questions.conversation(questions.test[0]).step("#### 71")[1:] == (0.0, True)
