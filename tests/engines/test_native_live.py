"""Newer params between decoding steps: every token knows its version, and its law."""

import jax
import numpy as np
import pytest
from test_native import PAD, engine_of
from test_native_schedule import LENGTHS, full_pass, policy, ragged  # noqa: F401

from tis_jax import models

SAMPLES, T = 3, 100


def flat(params, factor=1.0):
  arrays = jax.device_get(models.flatten(params))
  return {name: factor * x for name, x in arrays.items()}


class Publisher:
  """Newer params at the given looks, counted from 1."""

  def __init__(self, **at):
    self.looks, self.at = 0, {int(look[1:]): found for look, found in at.items()}

  def __call__(self):
    self.looks += 1
    return self.at.get(self.looks)


def generate(policy, new_params, publisher, slots=4, **options):  # noqa: F811
  engine = engine_of(
    policy, max_new_tokens=T, slots=slots, new_params=new_params, eos_ids=(), **options
  )
  engine.update(flat(policy[1]), version=3)
  engine.newer = publisher
  out = engine.generate(*ragged(LENGTHS), samples=SAMPLES, key=jax.random.key(1))
  return engine, out


def test_after_a_batch_nobody_looks(policy):  # noqa: F811
  publisher = Publisher(_1=(flat(policy[1], 1.5), 4))
  _, out = generate(policy, "after", publisher)
  assert publisher.looks == 0 and (out.versions == 3).all()


@pytest.mark.parametrize("new_params", ["switch", "switch_recompute"])
def test_a_switch_drops_nothing_and_names_the_version_of_every_token(
  policy,  # noqa: F811
  new_params,
):
  publisher = Publisher(_3=(flat(policy[1], 1.5), 4), _6=(flat(policy[1], 0.8), 7))
  engine, out = generate(policy, new_params, publisher)
  assert out.mask.all() and set(out.versions.ravel()) == {3, 4, 7}
  assert engine.health["switches"] == 2
  assert (np.diff(out.versions, axis=1) >= 0).all()
  # A response in the middle of which the params changed, and one that began after.
  both = (out.versions == 3).any(axis=1) & (out.versions == 4).any(axis=1)
  assert both.any() and (out.versions == 7).all(axis=1).any()
  # Up to the switch nothing is different.
  _, before = generate(policy, "after", Publisher())
  old = out.versions == 3
  np.testing.assert_array_equal(out.tokens[old], before.tokens[old])
  assert (out.tokens != before.tokens).any()


def test_what_began_after_a_switch_is_by_the_new_params_alone(policy):  # noqa: F811
  new = jax.tree.map(lambda x: 1.5 * x, policy[1])
  publisher = Publisher(_3=(flat(new), 4))
  _, out = generate(policy, "switch", publisher)
  whole = (out.versions == 4).all(axis=1)
  assert 3 <= whole.sum() < len(whole)
  found = full_pass((policy[0], new), ragged(LENGTHS), out)
  np.testing.assert_allclose(out.sampler_logp[whole], found[whole], atol=1e-4)
  # With old keys and values behind them, tokens of the new version have another law.
  mixed = (out.versions == 4) & ~whole[:, None]
  assert np.abs(out.sampler_logp[mixed] - found[mixed]).max() > 1e-2


def test_recomputed_tokens_have_the_new_versions_own_law(policy):  # noqa: F811
  new = jax.tree.map(lambda x: 1.5 * x, policy[1])
  publisher = Publisher(_3=(flat(new), 4))
  _, out = generate(policy, "switch_recompute", publisher)
  for version, params in ((3, policy[1]), (4, new)):
    found = full_pass((policy[0], params), ragged(LENGTHS), out)
    there = out.versions == version
    assert there.sum() > 100
    np.testing.assert_allclose(out.sampler_logp[there], found[there], atol=1e-4)


def test_a_version_that_does_not_fit_is_refused_by_name_and_the_rest_goes_on(
  policy,  # noqa: F811
):
  bad = flat(policy[1])
  bad["final_norm"] = bad["final_norm"][:-1]
  said = []
  publisher = Publisher(_2=(bad, 4), _4=(flat(policy[1], 1.5), 5))
  engine, out = generate(policy, "switch", publisher, say=said.append)
  assert len(said) == 1 and said[0].startswith("version 4 is refused")
  assert "final_norm has shape (15,)" in said[0]
  assert out.mask.all() and set(out.versions.ravel()) == {3, 5}
  assert engine.health["refused"] == 1


def test_a_greedy_answer_is_by_one_version(policy):  # noqa: F811
  engine, _ = generate(policy, "switch", Publisher())
  publisher = Publisher(_1=(flat(policy[1], 1.5), 4))
  engine.newer = publisher
  out = engine.generate(*ragged(LENGTHS), samples=1, key=jax.random.key(0), greedy=True)
  assert publisher.looks == 0 and (out.versions == 3).all()
  assert (out.tokens[~out.mask] == PAD).all()
