"""What must not matter does not: properties over many batches, compiled few times."""

import functools

import correction_oracles as oracles
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tis_jax.corrections import (
  chain,
  clip,
  importance,
  normalize,
  presets,
  reject,
  reject_divergence,
  truncate,
  veto,
  zero_outside,
)
from tis_jax.numerics.metrics import finalize, merge

seeds = st.integers(0, 2**31 - 1)
many = settings(max_examples=20, deadline=None)

# One chain that goes through every kind of stage at every kind of level.
EVERYTHING = chain(
  veto(0.3, 4.0),
  reject(2.2, level="token"),
  reject(1.8, level="turn"),
  reject(2.0, level="turn_geometric"),
  reject(3.0, level="min_prefix"),
  reject_divergence(0.2, kind="k3", reduce="mean"),
  reject(1.4, level="root"),
  reject(1.3, level="geometric"),
  clip(1.5, 0.5, level="prefix"),
)
UNMEASURED = chain(EVERYTHING, metrics="none")


@functools.cache
def compiled():
  return jax.jit(lambda correct, arrays, given: correct(*arrays, **given))


def run(correct, data, **given):
  if data.segment_ids is not None:
    given["segment_ids"] = data.segment_ids
  return compiled()(correct, data.arrays, given)


numbers, pool = jax.jit(finalize), jax.jit(merge)


def same_metrics(found, expected, rtol=2e-4):
  found, expected = numbers(found), numbers(expected)
  assert found.keys() == expected.keys()
  for name in found:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=rtol, atol=1e-5, err_msg=name
    )


@given(seeds)
@many
def test_equal_log_probs_weigh_one_and_reject_nothing(seed):
  data = oracles.rollouts(seed)
  out = run(EVERYTHING, data._replace(sampler=data.old))
  np.testing.assert_array_equal(out.weight, data.mask)
  np.testing.assert_array_equal(out.mask, data.mask)


@given(seeds, st.floats(0.1, 50.0), st.floats(1.0, 10.0))
@many
def test_weights_grow_with_the_cap_and_reach_plain_importance(seed, cap, factor):
  data = oracles.rollouts(seed, noise=1.0)
  low, high = (
    np.asarray(run(chain(truncate(c, level="sequence"), metrics="none"), data).weight)
    for c in (cap, cap * factor)
  )
  assert (low <= high).all() and (high <= cap * factor * (1 + 1e-6)).all()
  plain = run(chain(importance("sequence"), metrics="none"), data).weight
  free = run(chain(truncate(1e30, level="sequence"), metrics="none"), data).weight
  np.testing.assert_array_equal(free, plain)


@given(seeds, st.floats(1.01, 3.0), st.floats(1.0, 3.0))
@many
def test_a_wider_band_accepts_what_a_narrower_one_did(seed, high, factor):
  data = oracles.rollouts(seed)
  narrow, wide = (
    np.asarray(run(chain(reject(h, level="geometric"), metrics="none"), data).mask)
    for h in (high, high * factor)
  )
  assert not (narrow & ~wide).any()


@pytest.mark.parametrize("packed", [False, True])
@given(seeds)
@many
def test_row_order_does_not_matter(packed, seed):
  data = oracles.rollouts(seed, packed=packed)
  order = np.random.default_rng(seed).permutation(len(data.mask))
  out = run(EVERYTHING, data)
  shuffled = run(
    EVERYTHING, oracles.Rollouts(*(None if x is None else x[order] for x in data))
  )
  np.testing.assert_array_equal(shuffled.weight, out.weight[order])
  np.testing.assert_array_equal(shuffled.mask, out.mask[order])
  same_metrics(shuffled.metrics, out.metrics)


@pytest.mark.parametrize("packed", [False, True])
@given(seeds)
@many
def test_garbage_under_the_mask_does_not_matter(packed, seed):
  data = oracles.rollouts(seed, packed=packed)
  out = run(EVERYTHING, data)
  clean = oracles.Rollouts(
    np.where(data.mask, data.old, 0),
    np.where(data.mask, data.sampler, 0),
    data.mask,
    None if data.segment_ids is None else np.where(data.mask, data.segment_ids, 0),
  )
  expected = run(EVERYTHING, clean)
  np.testing.assert_array_equal(out.weight, expected.weight)
  np.testing.assert_array_equal(out.mask, expected.mask)
  found, wanted = numbers(out.metrics), numbers(expected.metrics)
  for name in found:
    np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@given(seeds)
@many
def test_garbage_where_a_log_prob_is_missing_does_not_matter(seed):
  data = oracles.rollouts(seed)
  rng = np.random.default_rng(seed)
  present = rng.random(data.mask.shape) < 0.8
  found = []
  for fill in (np.nan, np.inf, -np.inf, 0.0, 1e30):
    sampler = np.where(present, data.sampler, np.float32(fill))
    found.append(run(EVERYTHING, data._replace(sampler=sampler), present=present))
  for other in found[1:]:
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
      np.testing.assert_array_equal(a, b)


@given(seeds)
@many
def test_padding_does_not_matter(seed):
  data = oracles.rollouts(seed)
  fill = np.random.default_rng(seed).choice([np.nan, np.inf, -3.0])

  def padded(x, fill):
    wide = np.full((x.shape[0] + 2, x.shape[1] + 4), fill, x.dtype)
    wide[: x.shape[0], : x.shape[1]] = x
    return wide

  wide = oracles.Rollouts(
    padded(data.old, fill), padded(data.sampler, fill), padded(data.mask, False)
  )
  out, expected = run(UNMEASURED, wide), run(UNMEASURED, data)
  rows, columns = data.mask.shape
  weight, mask = (np.asarray(x)[:rows, :columns] for x in out[:2])
  np.testing.assert_allclose(weight, expected.weight, rtol=2e-6, atol=1e-7)
  np.testing.assert_array_equal(mask, expected.mask)
  assert not np.asarray(out.weight)[rows:].any()


@given(seeds)
@many
def test_the_side_of_the_padding_does_not_matter(seed):
  right = oracles.rollouts(seed)  # The last two columns are padding.
  left = oracles.Rollouts(*(np.roll(x, 2, axis=1) for x in right.arrays))
  out, expected = run(EVERYTHING, left), run(EVERYTHING, right)
  weight, mask = (np.roll(x, -2, axis=1) for x in out[:2])
  np.testing.assert_allclose(weight, expected.weight, rtol=2e-6, atol=1e-7)
  np.testing.assert_array_equal(mask, expected.mask)
  same_metrics(out.metrics, expected.metrics)


@given(seeds)
@many
def test_packed_equals_padded(seed):
  rows = oracles.rollouts(seed, batch=6, length=8)
  packed = oracles.Rollouts(
    *(x.reshape(3, 16) for x in rows.arrays),
    np.tile(np.repeat([5, 2], 8), (3, 1)).astype(np.int32),
  )
  out, expected = run(EVERYTHING, packed), run(EVERYTHING, rows)
  weight, mask = (np.asarray(x).reshape(6, 8) for x in out[:2])
  np.testing.assert_allclose(weight, expected.weight, rtol=2e-6, atol=1e-7)
  np.testing.assert_array_equal(mask, expected.mask)
  same_metrics(out.metrics, expected.metrics)


@given(seeds)
@many
def test_micro_batches_pool_to_the_whole(seed):
  data = oracles.rollouts(seed, packed=True)
  whole = run(EVERYTHING, data)
  parts = [
    run(
      EVERYTHING,
      oracles.Rollouts(*(None if x is None else x[i : i + 2] for x in data)),
    )
    for i in (0, 2, 4)
  ]
  np.testing.assert_array_equal(np.concatenate([p.mask for p in parts]), whole.mask)
  weight = np.concatenate([p.weight for p in parts])
  np.testing.assert_allclose(weight, whole.weight, rtol=1e-6)
  same_metrics(pool(*(p.metrics for p in parts)), whole.metrics)


@given(seeds, st.floats(1.05, 2.0))
@many
def test_zeroing_outside_is_rejecting_with_the_weight_left(seed, high):
  data = oracles.rollouts(seed)
  zeroed = run(chain(zero_outside(high), metrics="none"), data)
  both = chain(reject(high, level="token"), importance("token"), metrics="none")
  rejected = run(both, data)
  accepted = np.where(rejected.mask, rejected.weight, 0)
  np.testing.assert_array_equal(zeroed.weight, accepted)


@given(seeds, st.floats(-3, 3))
@many
def test_a_common_factor_leaves_normalised_weights(seed, shift):
  data = oracles.rollouts(seed)
  correct = chain(importance("token"), normalize(), metrics="none")
  moved = data._replace(old=(data.old + np.float32(shift)).astype(np.float32))
  np.testing.assert_allclose(
    run(correct, moved).weight, run(correct, data).weight, rtol=1e-4
  )


def test_a_root_band_keeps_the_same_share_of_every_length():
  rng = np.random.default_rng(0)
  shares = []
  for length in (16, 64, 256):
    d = rng.normal(0, 0.05, (2000, length)).astype(np.float32)
    arrays = d, np.zeros_like(d), np.ones_like(d)
    out = chain(presets.length_aware_mask(1.08), metrics="none")(*arrays)
    shares.append(float(np.asarray(out.mask).any(1).mean()))
  # P(|z| <= log(1.08) / 0.05) = 0.876, whatever the length.
  np.testing.assert_allclose(shares, 0.876, atol=0.025)
