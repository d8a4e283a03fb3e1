"""Every loss moves the quickstart's policy the way its advantages point."""

from pathlib import Path

import jax
import numpy as np
import pytest
from learner_oracle import make_algorithm

from tis_jax import advantages, learner, losses, models

ROLLOUTS = Path(__file__).parents[2] / "notebooks" / "quickstart_batch.npz"


@pytest.fixture(scope="module")
def quickstart():
  """The base policy, 32 rollouts that a run saved, and their log-probs under it."""
  config, params, _ = models.load("builtin:arithmetic")
  graph = models.decoder_graph(config)
  mesh = learner.make_mesh(devices=jax.devices()[:1])
  batch, _ = learner.load_batch(ROLLOUTS)
  batch = learner.take_rows(batch, np.arange(len(batch.rewards)) < 32)
  score = learner.make_score(graph, mesh)
  logp = np.asarray(score(params, batch).logp)
  # What a sampler of a little less precision would have said.
  noise = np.random.default_rng(0).normal(0.0, 0.01, logp.shape)
  batch = batch._replace(sampler_logp=(logp + noise).astype(np.float32))
  return graph, params, mesh, batch, score, logp


# Of tokens, of a sequence, and one that holds the ratio to the sampler itself. Each of
# the others is a compilation of its own, and waits for `make test-learning`.
_QUICK = ("gspo", "ppo", "topr")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in _QUICK else pytest.mark.learning)
    for name in sorted(losses.POLICY_LOSSES)
  ],
)
def test_every_loss_trains_the_quickstart_policy(name, quickstart):
  graph, params, mesh, batch, score, before = quickstart
  weighs = not losses.uses_sampler_ratio(losses.POLICY_LOSSES[name])
  algorithm = make_algorithm(
    loss__name=name,
    loss__dro__beta=1.0,
    correction__stages=("truncate",) if weighs else (),
    correction__metrics="none",  # the corrections' own tests read them
  )
  optimizer = learner.make_optimizer(learner.AdamW(1e-4, warmup_steps=0), updates=3)
  update = learner.make_update(graph, algorithm, optimizer, mesh)
  state = learner.init_state(params, optimizer, jax.random.key(0), mesh)
  for version in range(3):
    state, metrics = update(state, batch, np.int32(version))
    assert metrics["update/skipped"] == 0
    assert np.isfinite(metrics["loss/total"]) and metrics["optimizer/grad_norm"] > 0
  assert int(state.step) == 3
  change = np.where(batch.mask, np.asarray(score(state.params, batch).logp) - before, 0)
  # Supervised learning raises every answer, the others those with an advantage.
  direction = (
    np.ones_like(batch.rewards)
    if name == "cross_entropy"
    else np.asarray(advantages.grpo(batch.rewards, batch.group_ids))
  )
  assert (direction[:, None] * change).sum() > 0
