"""The whole loop learns: sampler process, store, correction, learner."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import quickstart
from tis_jax.runner import train


@pytest.mark.learning
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_quickstart_learns_from_a_sampler_of_little_precision(precision, tmp_path):
  config = quickstart.get_config()
  config.sampler.precision = precision
  config.train.steps = 100
  config.eval.every = 0
  config.log.tensorboard = False
  config.mesh.data = 8
  config.store.url = (tmp_path / "store").as_uri()
  summary = train(config, tmp_path)
  assert summary["rollouts/lost"] == summary["rollouts/quarantined"] == 0
  # Two standard errors of the difference are 0.04.
  assert summary["pass_at_1/gain"] > 0.06
