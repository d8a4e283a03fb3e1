"""The page's environment is short, and holds conversations with a policy."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from tis_jax import models
from tis_jax.engines import NativeEngine, play
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import turn_ids
from tis_jax.tasks import Environment, Turns

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.mark.slow
def test_the_environment_of_the_page_is_played():
  (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
  assert len([line for line in block.splitlines() if line.strip()]) < 25
  namespace = {}
  exec(compile(block, PAGE.name, "exec"), namespace)  # the page is ours
  task = namespace["load"]()
  config, params, tokenizer = models.load("builtin:arithmetic")
  environment = Environment(task, tokenizer, task.train, 8, turns=Turns(3, 24))
  engine = NativeEngine(
    models.decoder_graph(config),
    Sampling(temperature=2.0),
    max_new_tokens=4,
    eos_ids=tokenizer.eos_ids,
    pad_id=0,
  )
  engine.update(params, version=0)
  key = jax.random.key(0)
  played = play(engine, environment, np.arange(6), samples=4, key=key)
  assert not played.aborted
  turns = turn_ids(played.generation.mask).max(axis=1) + 1
  won = played.rewards == 1
  assert set(turns) >= {1, 3} and won.any() and not won.all()
  # A guess that is right ends it; one that is not is told how far off it was.
  assert (turns[~won] == 3).all()
  row = np.flatnonzero(turns == 3)[0]
  said = tokenizer.decode(played.generation.tokens[row][~played.generation.mask[row]])
  assert re.match(r"-?\d+=-?\d+=", said)
