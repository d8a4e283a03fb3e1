"""Tables of Hugging Face's datasets: saved to disk, and as files in a folder."""

import json

import pytest

from tis_jax import tasks
from tis_jax.tasks import MissingDatasetError, TaskError

pytestmark = pytest.mark.peers

ROWS = [{"question": f"{i}+1=", "answer": i + 1} for i in range(20)]


def load(name, **options):
  return tasks.load(
    "table", dataset=f"hf:{name}", prompt="question", answer="answer", **options
  )


def by_prompt(examples):
  return {example.prompt: example.answer for example in examples}


def test_a_dataset_that_was_saved_to_disk(tmp_path):
  datasets = pytest.importorskip("datasets")
  splits = {
    "train": datasets.Dataset.from_list(ROWS[:15]),
    "test": datasets.Dataset.from_list(ROWS[15:]),
  }
  datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "sums"))
  task = load(tmp_path / "sums", test_split="test")
  assert by_prompt(task.train) == {
    row["question"]: str(row["answer"]) for row in ROWS[:15]
  }
  assert by_prompt(task.test) == {
    row["question"]: str(row["answer"]) for row in ROWS[15:]
  }
  splits["train"].save_to_disk(str(tmp_path / "one"))
  task = load(tmp_path / "one", test_fraction=0.4)
  assert len(by_prompt(task.train) | by_prompt(task.test)) == 15
  with pytest.raises(TaskError, match="has no column 'anwser'; did you mean"):
    tasks.load(
      "table", dataset=f"hf:{tmp_path / 'one'}", prompt="question", answer="anwser"
    )
  with pytest.raises(MissingDatasetError, match="has no validation here"):
    load(tmp_path / "sums", train_split="validation")


def test_a_folder_of_files(tmp_path):
  pytest.importorskip("datasets")
  lines = "".join(json.dumps(row) + "\n" for row in ROWS)
  (tmp_path / "sums").mkdir()
  (tmp_path / "sums" / "train.jsonl").write_text(lines)
  task = load(tmp_path / "sums", data_dir=str(tmp_path / "cache"), test_fraction=0.4)
  assert len(by_prompt(task.train) | by_prompt(task.test)) == 20
