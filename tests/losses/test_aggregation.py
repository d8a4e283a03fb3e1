"""Denominators: hand-worked modes, and exactness over micro-batches and shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.losses import MODES, aggregate, denominators

LOSS = np.array([[1.0, 2.0, 3.0], [5.0, np.nan, np.nan], [4.0, 6.0, np.inf]])
MASK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
GROUPS = np.array([7, -2, 7], np.int32)
# Row sums 6, 5, 10 over 3, 1, 2 tokens.
BY_HAND = {
  "token_mean": 21 / 6,
  "sequence_mean": (6 / 3 + 5 / 1 + 10 / 2) / 3,
  "sequence_sum": 21 / 3,
  "sequence_sum_constant": 21 / 3 / 40,
  "token_sum": 21,
  "prompt_mean": (16 / 5 + 5 / 1) / 2,
}


def extras(mode, group_ids=GROUPS):
  if mode == "prompt_mean":
    return {"group_ids": group_ids}
  return {"length": 40} if mode == "sequence_sum_constant" else {}


@pytest.mark.parametrize("mode", MODES)
def test_modes_by_hand(mode):
  got = aggregate(LOSS.astype(np.float32), MASK, mode, **extras(mode))
  np.testing.assert_allclose(got, BY_HAND[mode], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_in_the_mask_gives_zero_and_no_gradient(mode):
  empty = np.zeros_like(MASK)
  f = lambda x: aggregate(x, empty, mode, **extras(mode))
  loss, grad = jax.value_and_grad(f)(LOSS.astype(np.float32))
  assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_empty_rows_count_for_nothing(mode):
  loss = np.concatenate([LOSS, np.full((2, 3), np.nan)]).astype(np.float32)
  mask = np.concatenate([MASK, np.zeros((2, 3), bool)])
  groups = np.concatenate([GROUPS, [7, 99]]).astype(np.int32)
  got = aggregate(loss, mask, mode, **extras(mode, groups))
  np.testing.assert_allclose(got, BY_HAND[mode], rtol=1e-6)


def test_denominator_mask_decides_what_a_rejection_does():
  kept = MASK & np.array([[True], [False], [True]])
  shrink = aggregate(LOSS, kept, "token_mean", denominator_mask=MASK)
  renormalise = aggregate(LOSS, kept, "token_mean")
  np.testing.assert_allclose([shrink, renormalise], [16 / 6, 16 / 5], rtol=1e-6)
  shrink = aggregate(LOSS, kept, "sequence_mean", denominator_mask=MASK)
  renormalise = aggregate(LOSS, kept, "sequence_mean")
  np.testing.assert_allclose([shrink, renormalise], [7 / 3, 7 / 2], rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_micro_batches_of_any_split_add_up(data):
  """Loss and gradient, with the global denominators sliced beside the rows."""
  rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
  mode = data.draw(st.sampled_from(MODES))
  rows = 6
  mask = rng.random((rows, 4)) < 0.6
  kept = mask & (rng.random((rows, 1)) < 0.7)
  loss = rng.normal(size=mask.shape).astype(np.float32)
  groups = rng.integers(-3, 3, rows).astype(np.int32)
  cut = data.draw(st.sampled_from([1, 3]))
  order = rng.permutation(rows)
  d = denominators(mask, mode, **extras(mode, groups))

  def at_once(loss):
    return aggregate(loss, kept, mode, denominator_mask=mask, **extras(mode, groups))

  def in_parts(loss):
    parts = (order[:cut], order[cut:])
    return sum(aggregate(loss[p], kept[p], denominator=d[p]) for p in parts)

  whole, found = (jax.value_and_grad(f)(loss) for f in (at_once, in_parts))
  np.testing.assert_allclose(found[0], whole[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[1], whole[1], rtol=1e-5, atol=1e-7)


def test_packed_rows_equal_separate_rows():
  rng = np.random.default_rng(0)
  loss = rng.normal(size=(4, 5)).astype(np.float32)
  mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 5, [1] * 5], bool)
  ids = np.repeat(np.array([[4], [9], [2], [4]]), 5, 1)
  modes = [m for m in MODES if m != "prompt_mean"]

  @jax.jit
  def separate(loss, mask):
    return [aggregate(loss, mask, m, **extras(m)) for m in modes]

  @jax.jit
  def packed(loss, mask, ids):
    out = []
    for m in modes:
      d = denominators(mask, m, segment_ids=ids, **extras(m))
      whole = aggregate(loss, mask, m, segment_ids=ids, **extras(m))
      rows = [
        aggregate(loss[i:][:1], mask[i:][:1], denominator=d[i:][:1]) for i in (0, 1)
      ]
      out.append((whole, sum(rows)))
    return out

  want = np.repeat(np.array(separate(loss, mask))[:, None], 2, 1)
  got = packed(*(x.reshape(2, 10) for x in (loss, mask, ids)))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_sharded_equals_one_device():
  rng = np.random.default_rng(1)
  loss = rng.normal(size=(8, 6)).astype(np.float32)
  mask = rng.random((8, 6)) < 0.6
  groups = rng.integers(0, 3, 8).astype(np.int32)
  ids = np.repeat([[0, 0, 0, 1, 1, 1]], 8, 0)

  def run(loss, mask, groups, ids):
    whole = [aggregate(loss, mask, m, **extras(m, groups)) for m in MODES]
    return [*whole, aggregate(loss, mask, "sequence_mean", segment_ids=ids)]

  want = jax.jit(run)(loss, mask, groups, ids)
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
      rows = NamedSharding(mesh, PartitionSpec("data"))
      arrays = [jax.device_put(x, rows) for x in (loss, mask, groups, ids)]
      got = jax.jit(run)(*arrays)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"mode": "mean"}, "mode must be one of"),
    ({"mode": "prompt_mean"}, "^mode 'prompt_mean' needs group_ids=, the prompt of"),
    ({"group_ids": GROUPS}, "group_ids belongs to mode 'prompt_mean', the mode is 't"),
    ({"mode": "sequence_sum_constant"}, "^mode 'sequence_sum_constant' needs length="),
    ({"length": 3.0}, "length belongs to mode 'sequence_sum_constant', the mode is 't"),
    ({"mode": "sequence_sum_constant", "length": 0}, "length must be above 0"),
    ({"denominator": 1.0, "denominator_mask": MASK}, "denominator is given"),
    ({"denominator": np.ones(2)}, "denominator must be a scalar"),
    ({"denominator_mask": MASK[:1]}, "denominator_mask must have shape"),
    (
      {
        "mode": "prompt_mean",
        "group_ids": GROUPS,
        "segment_ids": np.zeros((3, 3), int),
      },
      "takes one sequence a row",
    ),
    ({"mode": "prompt_mean", "group_ids": GROUPS.astype(float)}, "group_ids must be"),
  ],
)
def test_bad_input_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    aggregate(jnp.asarray(LOSS), MASK, **arguments)
  with pytest.raises(ValueError, match="mask must have shape"):
    aggregate(jnp.asarray(LOSS), MASK[:, :1])
