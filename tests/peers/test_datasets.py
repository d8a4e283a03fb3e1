"""Tables of Hugging Face's datasets: files in a folder, and what was saved to disk."""

import json

import pytest

from tis_jax import tasks
from tis_jax.tasks import MissingDatasetError, TaskError

pytestmark = pytest.mark.peers

ROWS = [{"question": f"{i}+1=", "answer": i + 1} for i in range(20)]


def load(folder, answer="answer", **options):
  return tasks.load(
    "table", dataset=f"hf:{folder}", prompt="question", answer=answer, **options
  )


def by_prompt(examples):
  return {example.prompt: example.answer for example in examples}


WANTED = {row["question"]: str(row["answer"]) for row in ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sums")
  lines = [json.dumps(row) + "\n" for row in ROWS]
  (folder / "train.jsonl").write_text("".join(lines[:15]))
  (folder / "test.jsonl").write_text("".join(lines[15:]))
  return folder


def test_a_folder_of_files(folder, tmp_path):
  pytest.importorskip("datasets")
  cache = str(tmp_path)
  task = load(folder, data_dir=cache)
  assert by_prompt(task.train) | by_prompt(task.test) == WANTED
  assert (len(task.train), len(task.test)) == (15, 5)
  task = load(folder, data_dir=cache, test_split="", test_fraction=0.4)
  assert len(task.train) + len(task.test) == 15
  with pytest.raises(TaskError, match="has no column 'anwser'; did you mean"):
    load(folder, data_dir=cache, answer="anwser")
  with pytest.raises(
    MissingDatasetError, match=r"has no validation here: .*validation"
  ):
    load(folder, data_dir=cache, train_split="validation")


def test_a_dataset_that_was_saved_to_disk(folder, tmp_path):
  datasets = pytest.importorskip("datasets")
  found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
  found.save_to_disk(str(tmp_path / "both"))
  task = load(tmp_path / "both")
  assert by_prompt(task.train) | by_prompt(task.test) == WANTED
  assert (len(task.train), len(task.test)) == (15, 5)
  found["train"].save_to_disk(str(tmp_path / "one"))
  task = load(tmp_path / "one", test_split="", test_fraction=0.4)
  assert len(task.train) + len(task.test) == 15
  with pytest.raises(MissingDatasetError, match="has no validation here"):
    load(tmp_path / "both", train_split="validation")
