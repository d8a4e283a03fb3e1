"""What a new user hands in by mistake is named, and what users hold is taken."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import tis_jax as tis

RNG = np.random.default_rng(0)
PROBABILITY = RNG.uniform(0.05, 0.95, (4, 6)).astype(np.float32)
OLD = np.log(PROBABILITY)
SAMPLER = (OLD + RNG.normal(0, 0.01, OLD.shape)).clip(max=0).astype(np.float32)
MASK = np.ones((4, 6), bool)
CORRECT = tis.chain(tis.truncate(2.0))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ((MASK, OLD, SAMPLER), TypeError, r"old_logp .* got bool; the order is \(old_logp"),
    ((OLD, MASK, SAMPLER), TypeError, "sampler_logp must be log-probs .* got bool"),
    ((OLD, SAMPLER, SAMPLER), ValueError, "mask must be bool or 0/1, it holds -"),
    ((OLD, SAMPLER, 0.5 * MASK), ValueError, "mask must be bool or 0/1, it holds 0.5"),
    ((OLD.astype(int), SAMPLER, MASK), TypeError, "old_logp must be log-probs .* int"),
  ],
)
def test_arguments_that_cannot_be_right_are_refused(kind, arguments, error, message):
  with pytest.raises(error, match=message):
    CORRECT(*map(kind, arguments))


def test_types_are_refused_under_jit_too():
  with pytest.raises(TypeError, match="old_logp must be log-probs"):
    jax.jit(CORRECT)(MASK, OLD, SAMPLER)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((PROBABILITY, SAMPLER, MASK), "old_logp holds 0.*are they probabilities"),
    ((OLD, PROBABILITY, MASK), "sampler_logp holds 0.*are they probabilities"),
    ((OLD + 1.0, SAMPLER, MASK), "old_logp holds .*no log-prob is above 0; the order"),
  ],
)
def test_log_probs_above_0_are_pointed_out(arguments, message):
  with pytest.warns(UserWarning, match=message):
    CORRECT(*arguments)


def test_what_is_right_is_let_through_in_silence():
  padded = np.where(np.arange(6) < 4, MASK, False)
  garbage = np.where(padded, OLD, 7.0)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    CORRECT(OLD, SAMPLER, MASK)
    CORRECT(garbage, np.where(padded, SAMPLER, np.nan), padded.astype(np.float32))
    CORRECT(OLD, np.where(MASK, SAMPLER, -np.inf), MASK.astype(np.int8))


def test_lists_are_taken_and_ragged_ones_are_padded():
  got = CORRECT(OLD.tolist(), SAMPLER.tolist(), MASK.tolist())
  np.testing.assert_allclose(got.weight, CORRECT(OLD, SAMPLER, MASK).weight, rtol=1e-6)
  ragged = [[-0.5, -1.0], [-2.0]]
  with pytest.raises(ValueError, match=r"different lengths; write tis.pad_ragged\(old"):
    CORRECT(ragged, ragged, [[1, 1], [1]])
  array, mask = tis.pad_ragged(ragged)
  assert CORRECT(array, array, mask).weight.tolist() == [[1.0, 1.0], [1.0, 0.0]]
  with pytest.raises(TypeError, match="old_logp must be an array of numbers, got str"):
    CORRECT("a", SAMPLER, MASK)


@pytest.mark.peers
def test_torch_tensors_are_taken():
  torch = pytest.importorskip("torch")
  old = torch.tensor(OLD, requires_grad=True)
  got = CORRECT(old, torch.tensor(SAMPLER), torch.tensor(MASK))
  np.testing.assert_array_equal(got.weight, CORRECT(OLD, SAMPLER, MASK).weight)
  CORRECT(old.bfloat16(), torch.tensor(SAMPLER).bfloat16(), torch.tensor(MASK))


def test_metrics_pool_over_a_shard_map():
  """`psum` would add up maxima and lose spreads; `tis.pool` is the whole batch's."""
  correct = tis.chain(tis.veto(0.5), tis.truncate(1.01), metrics="core")
  mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
  pooled = jax.shard_map(
    lambda *arrays: tis.pool(correct(*arrays).metrics, "data"),
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P(),
    check_vma=False,
  )
  got = tis.finalize(jax.jit(pooled)(OLD, SAMPLER, MASK))
  want = tis.finalize(correct(OLD, SAMPLER, MASK).metrics)
  assert got.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_allclose(got[name], x, rtol=2e-4, atol=1e-5, err_msg=name)
