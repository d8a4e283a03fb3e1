"""Re-makes the package data of the task gsm8k_steps from GSM8K's own files.

GSM8K's solutions carry calculator annotations such as `<<48/2=24>>`. This writes the
distinct ones, one a line, in the order in which they first occur:

  train.txt   the distinct steps of the training solutions
  test.txt    the distinct steps of the test solutions that train.txt does not hold

  python experiments/make_gsm8k_steps.py --gsm8k_dir=DIR

DIR holds train.jsonl, test.jsonl and LICENSE as published.
"""

import json
import re
import shutil
from pathlib import Path

try:
  from absl import app, flags

  import tis_jax.tasks.gsm8k_steps
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

_GSM8K = flags.DEFINE_string(
  "gsm8k_dir", None, "folder with train.jsonl, test.jsonl and LICENSE", required=True
)
_OUT = flags.DEFINE_string(
  "out", str(Path(tis_jax.tasks.gsm8k_steps.__file__).parent), "folder to write into"
)


def annotations(path: Path) -> list[str]:
  """Every calculator annotation of a GSM8K file, in order, repeats included."""
  with path.open(encoding="utf-8") as lines:
    solutions = [json.loads(line)["answer"] for line in lines]
  return [step for text in solutions for step in re.findall(r"<<([^<>]+)>>", text)]


def main(_):
  source, out = Path(_GSM8K.value), Path(_OUT.value)
  train = annotations(source / "train.jsonl")
  test = annotations(source / "test.jsonl")
  shown = dict.fromkeys(train)
  unseen = [step for step in dict.fromkeys(test) if step not in shown]
  for name, steps in (("train.txt", shown), ("test.txt", unseen)):
    (out / name).write_text("".join(f"{step}\n" for step in steps), encoding="utf-8")
  shutil.copyfile(source / "LICENSE", out / "LICENSE")
  print(f"train: {len(train):,} steps, {len(shown):,} distinct")
  print(f"test: {len(test):,} steps, {len(unseen):,} distinct that train never shows")


if __name__ == "__main__":
  app.run(main)
