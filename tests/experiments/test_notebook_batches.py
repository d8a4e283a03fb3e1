"""The batches of the notebooks are what the script that sampled them says."""

import ast
from pathlib import Path

import numpy as np
import pytest

from tis_jax import learner

ROOT = Path(__file__).parents[2]
# The gap of each, in nats a token, between the bounds of what its precision makes.
GAPS = {"float32": (0, 1e-4), "bfloat16": (0.01, 0.05), "int8": (0.05, 0.15)}


def script():
  """The script's questions and its reward, read without running it."""
  tree = ast.parse((ROOT / "experiments" / "make_notebook_batches.py").read_text())
  kept = []
  for node in tree.body:
    names = {x.id for x in getattr(node, "targets", ()) if isinstance(x, ast.Name)}
    if "QUESTIONS" in names or getattr(node, "name", None) == "reward":
      kept.append(node)
  found = {}
  exec(compile(ast.Module(kept, []), "make_notebook_batches.py", "exec"), found)
  return found["QUESTIONS"], found["reward"]


@pytest.mark.parametrize("precision", GAPS)
def test_a_batch_holds_what_its_script_says(precision):
  path = ROOT / "notebooks" / f"smollm2_{precision}.npz"
  assert path.stat().st_size < 100_000
  batch, extra = learner.load_batch(path)
  questions, reward = script()
  text = dict(zip(extra["piece_ids"].tolist(), extra["pieces"].tolist(), strict=True))
  read = lambda ids: "".join(text[i] for i in ids.tolist())
  for row, group in enumerate(batch.group_ids):
    question, words = questions[group]
    assert question in read(batch.prompts[row][batch.prompt_mask[row]])
    answer = read(batch.tokens[row][batch.mask[row]])
    assert batch.rewards[row] == reward(answer, words)
  assert np.bincount(batch.group_ids).tolist() == [4] * len(questions)

  d = (extra["old_logp"] - batch.sampler_logp)[batch.mask]
  low, high = GAPS[precision]
  assert low <= np.abs(d).mean() < high
  # The tokens follow the sampler's law: the mean ratio is 1 to its standard error.
  ratio = np.exp(d)
  assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5 + 1e-5
