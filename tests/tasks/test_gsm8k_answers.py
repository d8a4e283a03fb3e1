"""The last line of GSM8K's solutions as a task: what is taken, shown and rewarded."""

import json

import pytest

from tis_jax import tasks
from tis_jax.tasks import Example, gsm8k, gsm8k_answers

LONG = "She counts them all, one by one, and then once more: 3*3 = <<3*3=9>>9 eggs."
ROWS = {
  "train": [
    ("Why?", "It takes 2/2=<<2/2=1>>1 bolt.\nSo 2+1=<<2+1=3>>3 bolts.\n#### 3"),
    ("A long one?", f"{LONG}\n#### 9"),
    ("Why again?", "It takes 2/2=<<1=1>>1 bolt.\nSo 2+1=<<3=3>>3 bolts.\n#### 3"),
    ("What profit?", "200,000-130,000=$<<200000-130000=70000>>70,000.\n#### 70,000"),
  ],
  "test": [
    ("Other words?", "200,000-130,000=$<<2=2>>70,000.\n#### 70,000"),
    ("How cold?", "0-5=<<0-5=-5>>-5\n#### -5"),
  ],
}
BOLTS = "It takes 2/2=1 bolt.\nSo 2+1=3 bolts.\nFinal answer:"


def write(folder, rows):
  for split, pairs in rows.items():
    lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp("gsm8k"), ROWS)


def load(folder, **options):
  return tasks.load("gsm8k_answers", gsm8k_dir=folder, **options)


def test_a_prompt_is_a_solution_without_its_last_line_its_question_and_its_annotations(
  folder,
):
  task = load(folder, max_length=60)
  assert (task.name, task.chat) == ("gsm8k_answers", False)
  assert task.train == (
    Example(0, BOLTS, "3"),
    Example(1, "200,000-130,000=$70,000.\nFinal answer:", "70,000"),
  )


def test_a_prompt_of_train_is_not_in_test_and_none_is_twice(folder):
  task = load(folder)
  assert [example.prompt for example in task.train].count(BOLTS) == 1
  assert task.test == (Example(0, "0-5=-5\nFinal answer:", "-5"),)


def test_length_is_that_of_the_solution_in_the_prompt(folder):
  shown = LONG.replace("<<3*3=9>>", "")
  assert len(load(folder, max_length=len(shown)).train) == 3
  assert len(load(folder, max_length=len(shown) - 1).train) == 2
  # Four with annotations, of which the long one is now longer.
  assert len(load(folder, max_length=len(shown), annotations=True).train) == 3


def test_annotations_and_cue_are_choices(folder):
  task = load(folder, annotations=True, cue="So the number is")
  assert task.test[-1].prompt == "0-5=<<0-5=-5>>-5\nSo the number is"
  # With them, the two ways to 3 bolts are two prompts.
  assert len(task.train) == 4


def test_the_reward_is_for_the_number_that_a_completion_begins_with(folder):
  task = load(folder)
  profit, cold = task.train[-1], task.test[0]
  for right in (" 70,000", "70000", " $70000.00 a year", " **70000**\n\n7"):
    assert task.reward(right, profit) == 1.0
  for wrong in ("", " 7", " 70,00", " -70000", " It is 70000", "\n70000", " 700000"):
    assert task.reward(wrong, profit) == 0.0
  assert (task.reward(" -5", cold), task.reward(" 5", cold)) == (1.0, 0.0)


def test_rewards_by_name(folder):
  task = load(folder)
  example = task.test[0]
  found = {text: task.rewards["number"](text, example) for text in (" 3", " three")}
  assert found == {" 3": 1.0, " three": 0.0}
  assert task.rewards["correct"] is task.reward


def test_no_solution_that_is_short_enough_is_refused_in_words(folder):
  with pytest.raises(ValueError, match=r"no train .* max_length=9 .* shortest has 24"):
    load(folder, max_length=9)


def test_both_readers_give_the_same_prompts(folder, tmp_path):
  """TFDS keeps the annotated solution in a field of another name."""
  from tensorflow_datasets.text.gsm8k import gsm8k as upstream

  def local(self, dl_manager):
    del dl_manager
    return {s: self._generate_examples(f"{folder}/{s}.jsonl") for s in ROWS}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(upstream.Gsm8k, "_split_generators", local)
    gsm8k.download(str(tmp_path))
  for annotations in (False, True):
    kept = {"annotations": annotations}
    ours = gsm8k_answers.load(data_dir=str(tmp_path), **kept)
    # array_record has an order of its own.
    assert {e[1:] for e in ours.train} == {e[1:] for e in load(folder, **kept).train}
    assert {e[1:] for e in ours.test} == {e[1:] for e in load(folder, **kept).test}
