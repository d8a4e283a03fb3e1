"""The chain as an object: what it refuses, what its leaves are, what leaks through."""

import correction_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import corrections
from tis_jax.corrections import (
  chain,
  clip,
  importance,
  normalize,
  presets,
  reject,
  reject_divergence,
  reject_probability_difference,
  reject_stale,
  truncate,
  veto,
)
from tis_jax.numerics.metrics import finalize

DATA = oracles.rollouts(seed=5)


def test_the_empty_chain_weighs_one_and_still_measures():
  out = chain()(*DATA.arrays)
  np.testing.assert_array_equal(out.weight, DATA.mask)
  np.testing.assert_array_equal(out.mask, DATA.mask)
  assert out.weight.dtype == jnp.float32 and out.mask.dtype == bool
  assert float(finalize(out.metrics)["mismatch/k3"]) > 0.01


@pytest.mark.parametrize(
  ("build", "error", "says"),
  [
    (lambda: truncate(0.0), ValueError, "truncate: high must be above 0, got 0.0"),
    (lambda: truncate(-1), ValueError, "truncate: high"),
    (lambda: truncate(float("nan")), ValueError, "truncate: high"),
    (lambda: truncate("2.0"), TypeError, "must be a number, got '2.0'"),
    (lambda: truncate(True), TypeError, "must be a number, got True"),
    (lambda: truncate(np.ones(3)), ValueError, "use vmap for a sweep"),
    (lambda: truncate(2.0, level="sentence"), ValueError, "level must be one of"),
    (lambda: clip(2.0, 3.0), ValueError, "nothing passes"),
    (lambda: clip(2.0, -0.1), ValueError, "clip: low"),
    (lambda: reject(), ValueError, "give high, low or both"),
    (lambda: reject(0.9, 1.1), ValueError, "nothing passes"),
    (lambda: veto(0.0), ValueError, "give low, high or both"),
    (lambda: reject_divergence(1.0, 0.5), ValueError, "k3 is never negative"),
    (lambda: reject_divergence(1.0, kind="k4"), ValueError, "kind must be one of"),
    (
      lambda: reject_divergence(1.0, kind="k1", reduce="max"),
      ValueError,
      "write veto",
    ),
    (
      lambda: reject_probability_difference(reduce="sum", by_advantage=True),
      ValueError,
      "reduce='token'",
    ),
    (
      lambda: reject_probability_difference(0.3, 0.1),
      ValueError,
      "low must be at most 0, got 0.1",
    ),
    (lambda: normalize("world"), ValueError, "over must be one of"),
    (
      lambda: corrections.adaptive_truncate(ess_floor=1.0),
      ValueError,
      "ess_floor must be at least 0 and below 1",
    ),
    (lambda: reject_stale(-1), ValueError, "reject_stale: high"),
    (lambda: chain(truncate), TypeError, "is not a stage"),
    (lambda: chain([truncate(2.0)]), TypeError, r"write chain\(\*stages\)"),
    (lambda: chain((truncate(2.0),)), TypeError, r"write chain\(\*stages\)"),
    (lambda: chain(metrics="all"), ValueError, "metrics must be one of"),
    (
      lambda: chain(truncate(2.0), importance("sequence")),
      ValueError,
      "multiply the same ratio",
    ),
    (
      lambda: chain(presets.tis(), presets.icepop()),
      ValueError,
      "to bound the ratio a second time without weighting, use reject",
    ),
    (lambda: chain(normalize(), truncate()), ValueError, "no stage before it makes"),
  ],
)
def test_impossible_values_are_refused_when_the_chain_is_built(build, error, says):
  with pytest.raises(error, match=says):
    build()


@pytest.mark.parametrize(
  ("correct", "given", "says"),
  [
    (presets.opsm(), {}, "reject_negative_divergence needs advantages="),
    (presets.group_normalized_seq_tis(), {}, "normalize needs group_ids="),
    (chain(reject_stale(1)), {"versions": DATA.mask}, "needs learner_version="),
    (chain(), {"present": DATA.mask[0]}, r"present must have shape .*, got \(12,\)"),
    (chain(), {"advantages": np.ones(3)}, "advantages must have shape"),
  ],
)
def test_missing_and_misshapen_arguments_are_named(correct, given, says):
  with pytest.raises(ValueError, match=says):
    correct(*DATA.arrays, **given)


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"old_logp must be \[B, T\]"):
    chain()(DATA.old[0], DATA.sampler[0], DATA.mask[0])
  with pytest.raises(ValueError, match="sampler_logp must have shape"):
    chain()(DATA.old, DATA.sampler[:, :3], DATA.mask)


def test_chains_splice_and_say_whether_they_weigh_and_pool():
  both = chain(presets.geometric_mask(), presets.tis(), normalize())
  names = [stage.name for stage in both.stages]
  assert names == ["veto", "reject", "truncate", "normalize"]
  assert both.weighs and not presets.geometric_mask().weighs
  assert both.pools and not presets.tis().pools


def test_a_sweep_over_a_threshold_compiles_once_and_vmaps():
  traces = []

  @jax.jit
  def weights(correct, *arrays):
    traces.append(1)
    return correct(*arrays).weight

  def build(cap):
    return chain(reject(cap, level="geometric"), truncate(cap), metrics="none")

  caps = np.linspace(1.05, 3.0, 100)
  swept = np.stack([weights(build(float(cap)), *DATA.arrays) for cap in caps])
  assert len(traces) == 1
  mapped = jax.vmap(lambda cap: build(cap)(*DATA.arrays).weight)(jnp.float32(caps))
  np.testing.assert_allclose(swept, mapped, rtol=1e-6)
  assert (np.diff(swept, axis=0) >= 0).all()


def test_no_gradient_flows_through_weights_or_thresholds():
  def loss(cap, old, sampler):
    correct = chain(reject(3.0), corrections.clip(cap, level="sequence"), normalize())
    out = correct(old, sampler, DATA.mask)
    return out.weight.sum() + finalize(out.metrics)["mismatch/k3"] + old[0, 0]

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(2.0, DATA.old, DATA.sampler)
  cap, old, sampler = map(np.asarray, gradients)
  assert cap == 0 and (sampler == 0).all() and old[0, 0] == 1
  assert np.abs(old).sum() == 1


def test_nothing_left_is_finite_and_empty():
  everything = chain(reject(1e-6, 0.0), truncate(), normalize())
  for arrays in (DATA.arrays, (*DATA.arrays[:2], np.zeros_like(DATA.mask))):
    out = everything(*arrays)
    assert not np.asarray(out.mask).any()
    assert np.isfinite(out.weight).all()
    numbers = np.array(list(finalize(out.metrics).values()))
    assert np.isfinite(numbers).all()


def test_defects_are_capped_and_counted_not_spread():
  """Log-probs of -inf, of a sentinel, and of the wrong scale, at tokens that train."""
  old = np.full((3, 8), -1.0, np.float32)
  sampler = np.full((3, 8), -1.0, np.float32)
  old[0, 0], sampler[1, 0], sampler[2] = -np.inf, -9999.0, -1e30
  out = chain(truncate(2.0))(old, sampler, np.ones((3, 8)))
  np.testing.assert_allclose(out.weight[0, :2], [np.exp(-20), 1], rtol=1e-5)
  np.testing.assert_array_equal(out.weight[1, :2], [2, 1])
  np.testing.assert_array_equal(out.weight[2], 2)
  found = finalize(out.metrics)
  assert all(np.isfinite(x) for x in found.values())
  np.testing.assert_allclose(found["mismatch/catastrophic_tokens"], 10 / 24, rtol=1e-6)


def test_a_batch_of_nothing_but_defects_stays_finite():
  sampler = np.full((64, 512), -9999.0, np.float32)
  out = chain(metrics="full")(np.zeros_like(sampler), sampler, np.ones_like(sampler))
  found = finalize(out.metrics)
  assert all(np.isfinite(x) for x in found.values())
  np.testing.assert_allclose(found["mismatch/chi2_token"], np.exp(40.0), rtol=1e-5)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("mask_kind", [bool, np.int32, np.float32])
def test_any_dtype_in_fp32_out(kind, mask_kind):
  with np.errstate(over="ignore"):
    old, sampler = (jnp.asarray(x, kind) for x in (DATA.old, DATA.sampler))
  correct = chain(truncate(1.5), metrics="none")
  out = correct(old, sampler, DATA.mask.astype(mask_kind))
  as_fp32 = DATA._replace(old=np.float32(old), sampler=np.float32(sampler))
  expected = np.minimum(np.exp(oracles.log_ratio(as_fp32)), 1.5)
  np.testing.assert_allclose(out.weight, np.where(DATA.mask, expected, 0), rtol=2e-5)
  assert out.weight.dtype == jnp.float32 and out.mask.dtype == bool


def test_every_preset_runs():
  advantages = np.random.default_rng(0).normal(size=6).astype(np.float32)
  groups = np.array([0, 0, 1, 1, 2, 2], np.int32)
  for name in dir(presets):
    build = getattr(presets, name)
    if name.startswith("_") or getattr(build, "__module__", "") != presets.__name__:
      continue
    preset = build(0.04) if name == "m2po" else build()
    preset = chain(preset, metrics="none")
    out = preset(*DATA.arrays, advantages=advantages, group_ids=groups)
    assert np.isfinite(out.weight).all(), name
    assert not (np.asarray(out.mask) & ~DATA.mask).any(), name
    # Equal policies: nothing to correct.
    out = preset(DATA.old, DATA.old, DATA.mask, advantages=advantages, group_ids=groups)
    np.testing.assert_array_equal(out.weight, DATA.mask, err_msg=name)
    np.testing.assert_array_equal(out.mask, DATA.mask, err_msg=name)


def test_presets_are_the_chains_they_say():
  rho = np.exp(oracles.level(DATA, "sequence"))
  out = chain(presets.seq_mis(1.5), metrics="none")(*DATA.arrays)
  np.testing.assert_array_equal(out.mask, DATA.mask & (rho <= 1.5))
  np.testing.assert_allclose(out.weight, np.where(DATA.mask, rho, 0), rtol=2e-5)
  rho = np.exp(oracles.level(DATA, "geometric"))
  out = chain(presets.geometric_mask(1.05, 0.95, 0.5), metrics="none")(*DATA.arrays)
  least = oracles.over_sequences(DATA, np.exp(oracles.log_ratio(DATA)), np.min)
  accepted = DATA.mask & (rho <= 1.05) & (rho >= 0.95) & (least >= 0.5)
  np.testing.assert_array_equal(out.mask, accepted)
