"""Rows of a table: JSON lines, CSV, Parquet, TensorFlow Datasets, Hugging Face."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tis_jax.tasks.gsm8k import MissingDatasetError
from tis_jax.tasks.task import TaskError

Row = Mapping[str, Any]

# What marks a folder that Hugging Face's `save_to_disk` wrote.
_SAVED = ("dataset_info.json", "dataset_dict.json")


def read_file(path: str) -> Iterator[tuple[str, Row]]:
  """The rows of a file, each with where it stands, for messages.

  Args:
    path: `.jsonl` (one JSON object a line), `.csv` or `.tsv` (the first line has the
      names), or `.parquet` (needs pyarrow).

  Raises:
    MissingDatasetError: there is no such file.
    TaskError: it is of another kind, or a line of it cannot be read.
  """
  file = Path(path)
  if not file.is_file():
    raise MissingDatasetError(f"there is no table {file}")
  readers = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
  }
  if file.suffix not in readers:
    raise TaskError(f"{file} is no table: {', '.join(readers)} are")
  return readers[file.suffix](file)


def read_dataset(
  name: str, split: str, data_dir: str | None = None
) -> Iterator[tuple[str, Row]]:
  """The rows of a split of a data set that has been prepared on this machine.

  Args:
    name: "tfds:NAME" of TensorFlow Datasets, or "hf:NAME" of Hugging Face's `datasets`;
      there a folder of files, or one that `save_to_disk` wrote, too.
    split: of it, as its library writes them: "train", "train[:90%]".
    data_dir: where it was prepared; None is the library's own default.

  Raises:
    MissingDatasetError: the library or the data is not there; says how to get it.
    TaskError: the name has another form.
  """
  library, colon, name = name.partition(":")
  if not colon or library not in ("tfds", "hf"):
    raise TaskError(
      f"dataset {library!r}: write tfds:NAME for TensorFlow Datasets, or hf:NAME for "
      "Hugging Face's"
    )
  read = _tfds if library == "tfds" else _hugging_face
  where = f"{library}:{name} {split}"
  for number, row in enumerate(read(name, split, data_dir)):
    yield f"row {number} of {where}", row


def _json_lines(file: Path) -> Iterator[tuple[str, Row]]:
  with file.open(encoding="utf-8-sig") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      where = f"line {number} of {file}"
      try:
        row = json.loads(line)
      except ValueError as error:
        raise TaskError(f"{where} is no JSON: {error}") from error
      if not isinstance(row, dict):
        raise TaskError(f"{where} is a {type(row).__name__}, not an object")
      yield where, row


def _separated(file: Path) -> Iterator[tuple[str, Row]]:
  with file.open(encoding="utf-8-sig", newline="") as lines:
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
      for row in reader:
        where = f"line {reader.line_num} of {file}"
        if None in row:
          raise TaskError(f"{where} has more values than the first line has names")
        yield where, row
    except csv.Error as error:
      raise TaskError(f"line {reader.line_num} of {file}: {error}") from error


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise MissingDatasetError(f"{file} needs pyarrow: pip install pyarrow") from error
  rows = (
    row
    for batch in parquet.ParquetFile(file).iter_batches()
    for row in batch.to_pylist()
  )
  for number, row in enumerate(rows):
    yield f"row {number} of {file}", row


def _tfds(name: str, split: str, data_dir: str | None) -> Iterator[Row]:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise MissingDatasetError(
      f"tfds:{name} needs TensorFlow Datasets: pip install 'tis_jax[data]'"
    ) from error
  where = "" if data_dir is None else f", data_dir={data_dir!r}"
  try:
    source: Any = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
  except Exception as error:
    # TFDS has an exception of its own for each thing that may be missing.
    said = (str(error).strip().splitlines() or [""])[0]
    raise MissingDatasetError(
      f"tfds:{name} has no {split} prepared here ({type(error).__name__}: {said:.200})."
      " To download it: "
      f'python -c "import tensorflow_datasets as t; t.data_source({name!r}{where})"'
    ) from error
  return ({name: _decoded(value) for name, value in row.items()} for row in source)


def _decoded(value: Any) -> Any:
  try:
    return value.decode() if isinstance(value, bytes) else value
  except UnicodeDecodeError:
    return value  # An image, say.


def _hugging_face(name: str, split: str, data_dir: str | None) -> Iterator[Row]:
  try:
    import datasets  # type: ignore
  except ImportError as error:
    raise MissingDatasetError(
      f"hf:{name} needs the package datasets: pip install datasets"
    ) from error
  try:
    if any((Path(name) / file).exists() for file in _SAVED):
      found = datasets.load_from_disk(name)
      rows = found[split] if isinstance(found, dict) else found
    else:
      rows = datasets.load_dataset(name, split=split, cache_dir=data_dir)
    return cast("Iterator[Row]", iter(rows))
  except Exception as error:
    raise MissingDatasetError(
      f"hf:{name} has no {split} here: {' '.join(str(error).split()):.300}"
    ) from error
