"""GSM8K with a calculator: what is asked, what it answers, what it pays."""

import json

import pytest

from tis_jax import tasks
from tis_jax.models import CharacterTokenizer
from tis_jax.tasks.calculator import calculate


@pytest.fixture(scope="module")
def steps():
  return tasks.load("gsm8k_calculator")


def test_pairs_are_true_and_test_shows_none_of_train(steps):
  for example in (*steps.train, *steps.test):
    talk = steps.conversation(example)
    assert talk.reset() == example.prompt
    first = calculate(example.prompt.removesuffix("="))
    said, reward, done = talk.step(str(first))
    assert (reward, done) == (0.5, False)
    keyed, shown, _ = said.split("=")
    assert str(first) in keyed and calculate(keyed) == int(shown)
    assert shown == example.answer
    assert talk.step(example.answer)[1:] == (0.5, True)
  assert not {x.prompt for x in steps.train} & {x.prompt for x in steps.test}


def test_a_wrong_number_makes_the_calculator_right_about_the_wrong_sum(steps):
  talk = steps.conversation(steps.train[0])
  assert talk.step("23") == ("48+23=71=", 0.0, False)
  assert talk.step("71") == ("", 0.0, True)


@pytest.mark.parametrize("text", ["", "2+", "24=", "1*-/", "0" * 90])
def test_what_it_cannot_key_in_it_shows_as_0_in_its_own_alphabet(steps, text):
  talk = steps.conversation(steps.train[0])
  said, reward, done = talk.step(text)
  assert reward == 0 and not done
  assert said.endswith("=0=") or text == "0" * 90
  CharacterTokenizer("0123456789+-*/=").encode(said)


def test_a_quotient_with_a_remainder_has_no_display(steps):
  example = next(x for x in steps.train if steps.conversation(x)._pair.pending == "_/2")
  assert steps.conversation(example).step("7")[0] == "7/2=0="


def test_the_share_of_the_first_turn_is_a_setting():
  task = tasks.load("gsm8k_calculator", first=0.0)
  talk = task.conversation(task.train[0])
  assert talk.step("24")[1] == 0 and talk.step("72")[1] == 1
  with pytest.raises(ValueError, match="first"):
    tasks.load("gsm8k_calculator", first=2.0)
  with pytest.raises(ValueError, match="form"):
    tasks.load("gsm8k_calculator", form="essay")


@pytest.fixture
def questions(tmp_path):
  row = {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24.\n#### 72"}
  for split in ("train", "test"):
    (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
  return tasks.load("gsm8k_calculator", form="questions", gsm8k_dir=str(tmp_path))


def test_questions_are_answered_call_by_call(questions):
  assert questions.chat
  talk = questions.conversation(questions.train[0])
  assert talk.reset().startswith("How many clips?\nTo calculate")
  assert talk.step("In May <<48/2=") == ("48/2=24", 0.0, False)
  assert talk.step("<<1/3= and << 4/0 =")[0] == "1/3=0.3333\n4/0: it divides by zero"
  assert talk.step("Well.") == ("No <<...= to calculate, and no ####.", 0.0, False)
  assert talk.step("#### 72 clips")[1:] == (1.0, True)
  assert questions.conversation(questions.test[0]).step("#### 71")[1:] == (0.0, True)
