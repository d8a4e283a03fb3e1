"""The script that makes the packaged policy: its text, and that it runs."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tis_jax import tasks
from tis_jax.models import CharacterTokenizer, flatten
from tis_jax.models.weights import read_arithmetic

SCRIPT = Path(__file__).parents[2] / "experiments" / "pretrain.py"


@pytest.fixture(scope="module")
def pretrain():
  spec = importlib.util.spec_from_file_location("pretrain", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _wrong(line: str) -> bool:
  x, sign, y, z = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line).groups()
  exact = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
  return str(exact[sign](int(x), int(y))) != z


@pytest.mark.parametrize("slips", [0.0, 0.25])
def test_text_is_unseen_arithmetic_with_the_stated_slips(pretrain, slips):
  unseen = {e.prompt for e in tasks.load("gsm8k_steps").test}
  lines = pretrain.draw_lines(np.random.default_rng(0), 4000, slips, unseen)
  assert len(lines) == 4000
  assert not unseen & {line.partition("=")[0] + "=" for line in lines}
  assert {re.search(r"[-+*/]", line)[0] for line in lines} == set("+-*/")
  share = np.mean([_wrong(line) for line in lines])
  # A digit replaced by a random one stays as it was one time in ten.
  assert abs(share - 0.9 * slips) < 0.03
  rows = pretrain.encode(CharacterTokenizer(pretrain.ALPHABET), lines)
  assert rows.shape == (4000, pretrain.ROW)


def test_the_same_seed_gives_the_same_text(pretrain):
  first, second = (
    pretrain.draw_lines(np.random.default_rng(3), 50, 0.25, set()) for _ in range(2)
  )
  assert first == second


def test_script_writes_a_policy_that_reads_back(pretrain, tmp_path, capsys):
  out = tmp_path / "tiny.safetensors"
  flags.FLAGS(["pretrain", "--steps=2", "--batch=8", f"--out={out}"])
  pretrain.main(None)
  assert "greedy" in capsys.readouterr().out
  config, params, tokenizer = read_arithmetic(out)
  assert config.num_parameters < 1_000_000
  assert out.stat().st_size < 2_000_000
  assert flatten(params)["embedding"].dtype == np.float32
  assert tokenizer.decode(tokenizer.encode("48/2=24")) == "48/2=24"
