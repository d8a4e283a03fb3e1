"""GSM8K from jsonl and from TFDS, without TensorFlow and without a network."""

import json
import subprocess
import sys

import pytest

from tis_jax import tasks
from tis_jax.tasks import gsm8k

ROWS = {
  "train": [
    ("A robe takes 2 bolts. Half as much more?", "It takes 3 = <<2+1=3>>3\n#### 3"),
    ("How much profit?", "200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70,000"),
  ],
  "test": [("How cold?", "0-5=<<0-5=-5>>\n#### -5")],
}


@pytest.fixture(scope="module")
def jsonl_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gsm8k")
  for split, rows in ROWS.items():
    lines = [json.dumps({"question": q, "answer": a}) for q, a in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return folder


@pytest.fixture(scope="module")
def tfds_dir(jsonl_dir, tmp_path_factory):
  """The real TFDS builder, given local files in place of its download."""
  from tensorflow_datasets.text.gsm8k import gsm8k as upstream

  def local(self, dl_manager):
    del dl_manager
    return {s: self._generate_examples(jsonl_dir / f"{s}.jsonl") for s in ROWS}

  folder = tmp_path_factory.mktemp("tfds")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(upstream.Gsm8k, "_split_generators", local)
    gsm8k.download(str(folder))
  return str(folder)


def _check(task):
  assert task.chat is None and task.name == "gsm8k"
  assert len(task.train) == 2 and len(task.test) == 1
  assert {e.answer for e in task.train} == {"3", "70,000"}
  assert [e.id for e in task.train] == [0, 1]
  (cold,) = task.test
  assert cold.prompt == f"How cold?\n{gsm8k.INSTRUCTION}"
  assert task.reward("It is #### -5", cold) == 1.0
  assert task.reward("It is #### 5", cold) == 0.0
  assert task.reward("It is -5", cold) == 0.0


def test_jsonl(jsonl_dir):
  _check(tasks.load("gsm8k", gsm8k_dir=str(jsonl_dir)))


def test_tfds(tfds_dir):
  _check(tasks.load("gsm8k", data_dir=tfds_dir))
  assert "tensorflow" not in sys.modules


def test_last_number_and_instruction_are_choices(jsonl_dir):
  task = tasks.load("gsm8k", gsm8k_dir=str(jsonl_dir), last_number=True, instruction="")
  assert task.test[0].prompt == "How cold?"
  assert task.reward("It is -5", task.test[0]) == 1.0
  profit = task.train[1]
  assert task.reward("She made $70000.00.", profit) == 1.0


def test_missing_names_the_command_that_fixes_it(tmp_path):
  with pytest.raises(tasks.MissingDatasetError) as error:
    tasks.load("gsm8k", data_dir=str(tmp_path))
  assert f"python -m tis_jax.tasks gsm8k --data_dir={tmp_path}" in str(error.value)
  assert len(str(error.value)) < 400
  with pytest.raises(tasks.MissingDatasetError, match=r"train\.jsonl.*gsm8k_dir"):
    tasks.load("gsm8k", gsm8k_dir=str(tmp_path))


def test_the_command_exists():
  command = [
    sys.executable,
    "-W",
    "error::RuntimeWarning",
    "-m",
    "tis_jax.tasks",
    "--help",
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert "gsm8k" in done.stdout
