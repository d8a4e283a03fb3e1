"""Tokens that are late: anchored as a decoupled update anchors all, the others not."""

import dataclasses

import jax
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm

from tis_jax import learner
from tis_jax.corrections import chain, truncate
from tis_jax.runner import ConfigError

NONE_IS_LATE, ALL_ARE_LATE = 10, 1


@pytest.fixture(scope="module")
def step(tiny, batch):
  """`step(old_logp, policy, bound)`: params after one bypass or decoupled update."""

  def step(old_logp, policy="keep", bound=None, batch=batch, high=2.0):
    weighs = old_logp == "recompute"
    algorithm = dataclasses.replace(
      make_algorithm(),
      old_logp=old_logp,
      correct=chain(truncate(high)) if weighs else chain(),
      late=learner.Late(policy, high),
      max_staleness=bound,
    )
    update = learner.make_update(
      tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"]
    )
    state, metrics = update(tiny.state(), batch, np.int32(VERSION))
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]), metrics

  return step


@pytest.mark.slow
def test_late_tokens_have_three_policies_and_the_others_two(step, batch):
  decoupled, _ = step("recompute")
  bypass, _ = step("sampler")
  assert np.abs(decoupled - bypass).max() > 1e-3
  all_late, _ = step("sampler", "recompute", ALL_ARE_LATE)
  np.testing.assert_allclose(all_late, decoupled, atol=2e-6)
  # So far behind that the line between both ends at the learner's own log-probs.
  long_ago = batch._replace(versions=batch.versions - 10**7)
  rebuilt, _ = step("sampler", "reconstruct", ALL_ARE_LATE, long_ago)
  np.testing.assert_allclose(rebuilt, decoupled, atol=2e-5)
  none_late, _ = step("sampler", "recompute", NONE_IS_LATE)
  np.testing.assert_allclose(none_late, bypass, atol=2e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"late__policy": "discard"}, "late.policy"),
    ({"late__policy": "reconstruct"}, "there is nothing to reconstruct"),
    (
      {
        "late__policy": "recompute",
        "old_logp": "sampler",
        "loss__name": "reinforce",
        "correction__stages": (),
      },
      "reinforce holds no ratio to old_logp",
    ),
  ],
)
def test_policies_that_would_do_nothing_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    make_algorithm(**changes)
