"""Tables as tasks: columns, rewards by name, and rows that cannot be used."""

import json
import sys

import pytest

from tis_jax import tasks
from tis_jax.tasks import MissingDatasetError, TaskError

ROWS = [
  {"question": f"{i}+1=", "answer": i + 1, "level": "easy" if i < 20 else "hard"}
  for i in range(40)
]


def jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return str(path)


@pytest.fixture
def table(tmp_path):
  return jsonl(tmp_path / "sums.jsonl", ROWS)


def load(**options):
  return tasks.load("table", **{"prompt": "question"} | options)


def by_prompt(task):
  return {x.prompt: (x.answer, x.extra) for x in (*task.train, *task.test)}


WANTED = {
  row["question"]: (str(row["answer"]), {"level": row["level"]}) for row in ROWS
}


def test_every_row_is_in_one_of_the_splits(table):
  task = load(path=table, test_fraction=0.3)
  assert by_prompt(task) == WANTED
  assert len(task.train) + len(task.test) == 40
  assert 4 <= len(task.test) <= 20
  assert [x.id for x in task.train] == list(range(len(task.train)))
  assert task.chat is None and task.apart is False and task.notes == ()


def test_the_split_is_the_same_whatever_the_order_of_the_rows(table, tmp_path):
  held = {x.prompt for x in load(path=table).test}
  turned = jsonl(tmp_path / "turned.jsonl", ROWS[::-1] + ROWS)
  assert {x.prompt for x in load(path=turned).test} == held


def test_held_out_rows_of_a_file_of_their_own_are_none_of_train(table, tmp_path):
  more = [{"question": "7+7=", "answer": 14}, ROWS[3]]
  task = load(path=table, test_path=jsonl(tmp_path / "test.jsonl", more))
  assert len(task.train) == 40
  assert [(x.prompt, x.answer) for x in task.test] == [("7+7=", "14")]
  with pytest.raises(TaskError, match=r"no prompt of .* is left to be held out"):
    load(path=table, test_path=jsonl(tmp_path / "same.jsonl", ROWS[:2]))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_other_files_hold_the_same_rows(suffix, tmp_path):
  path = tmp_path / f"sums{suffix}"
  if suffix == ".parquet":
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
  else:
    comma = {".csv": ",", ".tsv": "\t"}[suffix]
    lines = [comma.join(ROWS[0])]
    lines += [comma.join(map(str, row.values())) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
  assert by_prompt(load(path=str(path))) == WANTED


def test_a_data_set_of_tfds_that_is_prepared_here(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  from tis_jax.tasks.gsm8k_steps.builder import Gsm8kSteps

  Gsm8kSteps(data_dir=tmp_path).download_and_prepare()
  columns = {"prompt": "{expression}=", "answer": "result", "reward": "number"}
  asked = {"dataset": "tfds:gsm8k_steps", "data_dir": str(tmp_path)}
  task = load(**asked, **columns)
  assert ("48/2=", "24") in {(x.prompt, x.answer) for x in task.train}
  assert len(task.train) > 10_000 and len(task.test) > 1_000
  with pytest.raises((MissingDatasetError, TaskError), match="tfds:gsm8k_steps"):
    load(**asked, **columns, train_split="no_such_split")
  with pytest.raises(MissingDatasetError, match="tfds:no_such_set has no train"):
    load(**asked | {"dataset": "tfds:no_such_set"}, **columns)


def test_texts_may_have_several_columns(table):
  task = load(path=table, prompt="{level}: {question}", answer="{answer}.")
  example = next(x for x in task.train if x.prompt.startswith("hard"))
  row = ROWS[int(example.answer[:-1]) - 1]
  assert example.prompt == f"hard: {row['question']}"
  assert example.extra == row


@pytest.mark.parametrize(
  ("reward", "right", "wrong"),
  [
    ("exact", [" 3\n"], ["3.0", "3 4", ""]),
    ("contains", ["it is 3", "13"], ["", "four"]),
    ("number", ["3", " 3.0 of them", "$3"], ["so 3", "4", ""]),
    ("final", ["2+1 #### 3", "#### 9 #### 3."], ["3", "#### 3 #### 4", ""]),
    ("last_number", ["so 1+2=3", "#### 3 or 4"], ["3 or 4", "none"]),
  ],
)
def test_rewards_by_name(table, reward, right, wrong):
  task = load(path=table, reward=reward)
  example = tasks.Example(0, "2+1=", "3")
  assert [task.reward(text, example) for text in right] == [1.0] * len(right)
  assert [task.reward(text, example) for text in wrong] == [0.0] * len(wrong)
  said = tasks.answer_of(task, right[0])
  assert said is not None and said != tasks.answer_of(task, wrong[0])


def test_several_rewards_some_of_them_imported(table, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("def short(text, example): return float(len(text) < 3)\n")
  task = load(path=table, reward="exact", rewards=f"exact, {file}:short")
  assert list(task.rewards) == ["exact", "short"]
  assert task.rewards["short"]("123", task.train[0]) == 0.0
  assert task.apart is True
  # Whoever judges loads the rewards, and none of the rows.
  alone = tasks.loader(task.source.name)(**task.source.options)
  assert list(alone.rewards) == ["exact", "short"] and not alone.train
  assert load(path=table, reward="exact", rewards=("exact",)).apart is False


def test_rows_that_cannot_be_used_are_named_and_the_rest_goes_on(tmp_path):
  rows = [*ROWS, {"question": "", "answer": 3}, {"question": "1+1="}]
  rows += [{"question": "2+2=", "answer": "four"}, {"question": "9+9=", "answer": None}]
  path = jsonl(tmp_path / "some.jsonl", rows)
  task = load(path=path, reward="number")
  assert by_prompt(task) == WANTED
  (note,) = task.notes
  assert note.startswith("4 rows of the table left out: line 41 of")
  assert "line 41 of " in note and "has no 'question'; line 42" in note
  assert "has no 'answer'; line 43" in note
  assert "an answer that is no number: 'four'; ..." in note
  assert len(by_prompt(load(path=path))) == 41  # to "exact" it is an answer


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "either a path or a dataset"),
    ({"dataset": "gsm8k"}, "write tfds:NAME"),
    ({"answer": "anwser"}, r"line 1 of .*sums.jsonl has no column 'anwser'; did you m"),
    ({"answer": "anwser"}, r"\(the columns are question, answer, level\)"),
    ({"prompt": "{question} {topic}"}, "has no column 'topic'"),
    ({"prompt": "{question"}, "cannot be filled in"),
    ({"reward": "exakt"}, "no reward 'exakt'; did you mean 'exact'"),
    ({"rewards": "exact,nonumber"}, "no reward 'nonumber'; did you mean 'number'"),
    ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1"),
    ({"reward": "nowhere.py:reward"}, "there is no file"),
  ],
)
def test_what_is_wrong_is_said(options, message, table):
  path = {} if not options or "dataset" in options else {"path": table}
  with pytest.raises(TaskError, match=message):
    load(**path, **options)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(MissingDatasetError, match=r"no table .*nowhere\.jsonl"):
    load(path=str(tmp_path / "nowhere.jsonl"))
  (tmp_path / "table.txt").write_text("x")
  with pytest.raises(TaskError, match=r"table.txt is no table: \.jsonl"):
    load(path=str(tmp_path / "table.txt"))
  (tmp_path / "cut.jsonl").write_text('{"question": "1", "answer": "2"}\n{"que')
  with pytest.raises(TaskError, match=r"line 2 of .*cut\.jsonl is no JSON"):
    load(path=str(tmp_path / "cut.jsonl"))
  (tmp_path / "list.jsonl").write_text("[1]\n")
  with pytest.raises(TaskError, match=r"line 1 of .*list\.jsonl is a list"):
    load(path=str(tmp_path / "list.jsonl"))
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(TaskError, match="no row that can be used"):
    load(path=str(tmp_path / "empty.jsonl"))


def test_paths_are_absolute_for_whoever_is_elsewhere(table, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name, options = tasks.settled(
    "table", {"path": "sums.jsonl", "reward": "mine.py", "rewards": ("exact", "a.py:b")}
  )
  assert name == "table"
  assert options == {
    "path": table,
    "reward": str(tmp_path / "mine.py"),
    "rewards": f"exact,{tmp_path / 'a.py'}:b",
  }


def test_a_package_that_is_not_there_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(MissingDatasetError, match=r"hf:squad needs the package datasets"):
    load(dataset="hf:squad")
