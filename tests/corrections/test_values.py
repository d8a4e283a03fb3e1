"""A chain is a value: called under jit, compared, hashed, pickled, printed, written."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correction_oracles import rollouts

import tis_jax as tis
from tis_jax import corrections
from tis_jax.corrections import STAGES, presets

DATA = rollouts(seed=5)
CHAINS = {
  "watched": tis.chain(tis.watch(tis.reject(1.5, level="token")), tis.truncate(2.0)),
  "nothing": tis.chain(),
  "truncate": tis.chain(tis.truncate(2.0)),
  "three": tis.chain(
    tis.veto(1e-4), tis.reject(1.01, level="geometric"), tis.truncate(3.0)
  ),
  "quiet": tis.chain(tis.reject(low=0.5, level="token"), metrics="none"),
  **{
    name: getattr(presets, name)()
    for name in (
      "icepop",
      "adaptive",
      "kpop",
      "tv_mask",
      "normalized_seq_tis",
      "error_mask",
    )
  },
}


def weight(correct):
  return correct(*DATA.arrays, advantages=np.ones(len(DATA.mask), np.float32)).weight


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_called_under_jit(name):
  correct = CHAINS[name]
  given = {"advantages": np.ones(len(DATA.mask), np.float32)}
  got = jax.jit(correct)(*DATA.arrays, **given)
  np.testing.assert_array_equal(got.weight, weight(correct))
  as_leaves = jax.jit(lambda correct, *arrays: correct(*arrays, **given).mask)
  np.testing.assert_array_equal(as_leaves(correct, *DATA.arrays), got.mask)
  static = jax.jit(as_leaves.__wrapped__, static_argnums=0)
  np.testing.assert_array_equal(static(correct, *DATA.arrays), got.mask)
  part = functools.partial(correct, DATA.arrays[0])
  np.testing.assert_array_equal(part(*DATA.arrays[1:], **given).mask, got.mask)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_a_key_a_pickle_and_the_code_that_makes_it(name):
  correct = CHAINS[name]
  again = pickle.loads(pickle.dumps(correct))
  assert again == correct and {correct: name}[again] == name
  names = {**STAGES, "chain": tis.chain, "watch": tis.watch}
  assert eval(repr(correct), names) == correct
  for stage in correct.stages:
    assert eval(repr(stage), names) == stage


def test_chains_that_differ_are_not_equal():
  assert len(set(CHAINS.values())) == len(CHAINS)
  assert tis.truncate(2.0) == tis.truncate(2) != tis.truncate(3.0)
  assert tis.truncate(2.0) != tis.truncate(2.0, level="sequence")
  assert tis.truncate(2.0) != "truncate"


def test_thresholds_on_the_device_are_thresholds_too():
  correct = tis.chain(tis.truncate(jnp.float32(2.0)))
  assert correct == tis.chain(tis.truncate(2.0)) and hash(correct) == hash(
    tis.chain(tis.truncate(2.0))
  )
  np.testing.assert_array_equal(weight(correct), weight(CHAINS["truncate"]))


def test_leaves_are_the_bounds_as_they_were_given():
  doubled = jax.tree.map(lambda bound: 2.0 * bound, tis.chain(tis.reject(1.5, 0.25)))
  assert doubled == tis.chain(tis.reject(3.0, 0.5))


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_goes_to_json_and_back(name):
  correct = CHAINS[name]
  written = json.loads(json.dumps(corrections.to_config(correct)))
  assert corrections.from_config(written) == correct


def test_a_chain_of_repeated_stages_goes_to_json_and_back():
  correct = tis.chain(
    tis.reject(2.0), tis.watch(tis.reject(1.1, level="token")), tis.reject(3.0)
  )
  written = corrections.to_config(correct)
  assert written["stages"] == ["reject", "watch:reject_2", "reject_3"]
  assert corrections.from_config(written) == correct


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"stages": ["truncat"]}, "correction.stages has no .* did you mean 'truncate'"),
    ({"truncate": {"hihg": 2.0}}, "correction.truncate has no .* did you mean 'high'"),
    ({"stages": ["veto_2"]}, "correction.veto_2 is not there"),
    ({"stages": ["truncate"], "truncate": {"high": -1.0}}, "truncate: high must be"),
  ],
)
def test_a_config_that_names_nothing_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    corrections.from_config(config)


def test_watching_reports_what_would_have_been_and_changes_nothing():
  stages = tis.truncate(1.1), tis.veto(0.5), tis.reject(1.05, level="geometric")
  plain = tis.chain()(*DATA.arrays)
  out = tis.chain(*map(tis.watch, stages))(*DATA.arrays)
  np.testing.assert_array_equal(out.weight, plain.weight)
  np.testing.assert_array_equal(out.mask, plain.mask)
  seen = tis.finalize(out.metrics)
  for stage in stages:
    alone = tis.finalize(tis.chain(stage)(*DATA.arrays).metrics)
    names = [x for x in alone if x.startswith(f"{stage.name}/")]
    assert names
    for name in names:
      np.testing.assert_array_equal(seen[f"watch/{name}"], alone[name], err_msg=name)
  assert seen["watch/truncate/low"] > 0  # the share below 1 / high, as verl has it
