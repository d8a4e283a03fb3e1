"""Group estimators against plain loops over ragged groups, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax import advantages
from tis_jax.numerics import groups

ROWS = 16
LENGTHS = np.random.default_rng(9).integers(1, 30, ROWS).astype(np.float32)
RESULTS = {
  "grpo": advantages.grpo,
  "dr_grpo": advantages.dr_grpo,
  "rloo": advantages.rloo,
  "opo": lambda r, ids, **kw: advantages.opo(r, LENGTHS, ids, **kw),
  "gpg": advantages.gpg,
  "maxrl": advantages.maxrl,
}


@functools.cache
def compiled(name, singleton="zero"):
  """One compilation serves every grouping, ragged or not."""

  @jax.jit
  def run(rewards, ids, kept):
    return RESULTS[name](rewards, ids, baseline_mask=kept, singleton=singleton)

  return run


def oracle(name, rewards, ids, kept, singleton="zero"):
  rewards = rewards.astype(np.float64)
  out = np.zeros(ROWS)
  learns = 0
  for i in range(ROWS):
    group = np.flatnonzero((ids == ids[i]) & kept)
    others = group[group != i]
    learns += bool(kept[i] and np.ptp(rewards[group]) > 0)
    lonely = len(others) == 0 if name == "rloo" else len(group) < 2
    if lonely:
      out[i] = rewards[i] if singleton == "raw" else 0.0
      continue
    r = rewards[group]
    away = rewards[i] - r.mean()
    if name == "grpo":
      out[i] = away / (r.std(ddof=1) + 1e-6)
    elif name in ("dr_grpo", "gpg"):
      out[i] = away
    elif name == "maxrl":
      out[i] = away / (r.mean() + 1e-6)
    elif name == "rloo":
      out[i] = rewards[i] - rewards[others].mean()
    elif name == "opo":
      out[i] = rewards[i] - np.average(r, weights=LENGTHS[group])
  if name == "gpg":
    scaled = [np.sum((ids == ids[i]) & kept) > 1 for i in range(ROWS)]
    out = np.where(scaled, out * kept.sum() / max(learns, 1), out)
  return out


@pytest.mark.parametrize("name", RESULTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_the_loop_on_ragged_interleaved_groups(name, seed):
  rng = np.random.default_rng(seed)
  ids = rng.choice([-7, 0, 3, 2**31 - 1, 5], ROWS).astype(np.int32)
  rewards = rng.choice([0.0, 1.0, 0.5, 0.1], ROWS).astype(np.float32)
  kept = rng.random(ROWS) < rng.choice([0.0, 0.4, 0.9])
  for singleton in ("zero", "raw"):
    run = compiled(name, singleton)
    want = oracle(name, rewards, ids, kept, singleton)
    np.testing.assert_allclose(run(rewards, ids, kept), want, rtol=1e-4, atol=1e-5)
    assert run._cache_size() == 1  # one program, whatever the groups


@pytest.mark.parametrize("name", RESULTS)
def test_no_mask_keeps_every_row(name):
  rng = np.random.default_rng(1)
  rewards, ids = rng.random(ROWS).astype(np.float32), rng.integers(0, 5, ROWS)
  want = oracle(name, rewards, ids, np.ones(ROWS, bool))
  got = jax.jit(RESULTS[name])(rewards, ids)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RESULTS)
def test_a_row_left_out_moves_no_sibling_and_may_be_nan(name):
  ids = np.repeat(np.arange(4), 4).astype(np.int32)
  rewards = np.random.default_rng(2).random(ROWS).astype(np.float32)
  kept = np.arange(ROWS) != 5
  base = np.asarray(compiled(name)(rewards, ids, kept))
  for value in (np.nan, np.inf, 1e30):
    changed = np.where(kept, rewards, value).astype(np.float32)
    got = np.asarray(compiled(name)(changed, ids, kept))
    np.testing.assert_array_equal(got[kept], base[kept])
    assert value == 1e30 or got[5] == 0
  # Kept in, it does move them: the choice matters.
  all_rows = np.asarray(compiled(name)(rewards, ids, np.ones(ROWS, bool)))
  assert (all_rows[4:8] != base[4:8]).any()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "opo"])
def test_shift_of_a_group_changes_nothing(name):
  ids = np.tile(np.arange(4), 4).astype(np.int32)
  rewards = np.random.default_rng(3).random(ROWS).astype(np.float32)
  everyone = np.ones(ROWS, bool)
  got = compiled(name)(rewards + 5.0 * ids, ids, everyone)
  want = compiled(name)(rewards, ids, everyone)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("reward", [0.1, 0.3, -0.7, 1 / 3])
def test_equal_rewards_and_empty_masks_give_nothing(name, reward):
  ids = np.zeros(ROWS, np.int32)
  same = np.full(ROWS, reward, np.float32)
  got = np.asarray(compiled(name)(same, ids, np.ones(ROWS, bool)))
  np.testing.assert_allclose(got, 0.0, atol=1e-6)
  got = compiled(name)(same * np.nan, ids, np.zeros(ROWS, bool))
  np.testing.assert_array_equal(got, np.zeros(ROWS))


def test_sharded_equals_one_device():
  rng = np.random.default_rng(4)
  arrays = (
    rng.random(ROWS).astype(np.float32),
    rng.integers(-2, 3, ROWS).astype(np.int32),
    rng.random(ROWS) < 0.8,
    rng.random((ROWS, 3)).astype(np.float32),
  )

  def run(rewards, ids, kept, table):
    out = {n: f(rewards, ids, baseline_mask=kept) for n, f in RESULTS.items()}
    out["pass"] = advantages.pass_at_k(rewards, ids, 2, baseline_mask=kept)
    out["best"] = advantages.best_of_group(rewards, ids, baseline_mask=kept)
    out["table"] = groups.group_sum(table, ids, kept)
    return out

  want = jax.jit(run)(*arrays)
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    placed = [jax.device_put(x, rows) for x in arrays]
    with jax.set_mesh(mesh):
      got = jax.jit(run)(*placed)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want
    )
  # Outside set_mesh the arrays know their mesh.
  np.testing.assert_allclose(
    advantages.rloo(*placed[:2], baseline_mask=placed[2]), want["rloo"], atol=1e-6
  )


def test_many_rows_are_compared_block_by_block(monkeypatch):
  """The same sums and maxima, with a block that does not divide the rows."""
  rng = np.random.default_rng(6)
  arrays = (
    rng.random(ROWS).astype(np.float32),
    rng.integers(0, 4, ROWS).astype(np.int32),
    rng.random(ROWS) < 0.8,
  )
  run = lambda *a: (groups.group_sum(*a), groups.max_of_others(*a))
  want = run(*arrays)
  monkeypatch.setattr(groups, "_BLOCK", 5)
  for kind in (None, AxisType.Auto, AxisType.Explicit):
    placed = arrays
    if kind is not None:
      mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
      rows = NamedSharding(mesh, PartitionSpec("data"))
      placed = [jax.device_put(x, rows) for x in arrays]
    got = jax.jit(lambda *a: run(*a))(*placed)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6)


def brute_force_pass_at_k(success, k):
  """Every set of k draws a reward; a row averages the normalised ones it is in."""
  n = len(success)
  sets = list(itertools.combinations(range(n), k))
  rewards = np.array([max(success[i] for i in s) for s in sets], float)
  if rewards.std() == 0:
    return np.zeros(n)
  z = (rewards - rewards.mean()) / rewards.std()
  return np.array(
    [np.mean([z[j] for j, s in enumerate(sets) if i in s]) for i in range(n)]
  )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_every_set(k):
  success = np.array([1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0])
  ids = np.array([5] * 6 + [1] * 2 + [3] * 4, np.int32)
  order = np.random.default_rng(5).permutation(len(ids))
  run = jax.jit(advantages.pass_at_k, static_argnums=2)
  got = run(success[order].astype(np.float32), ids[order], k)
  want = np.zeros(len(ids))
  for group in (5, 1, 3):
    at = ids == group
    if at.sum() >= k:
      want[at] = brute_force_pass_at_k(success[at], k)
  np.testing.assert_allclose(got, want[order], rtol=1e-4, atol=1e-6)


def test_pass_at_one_is_grpo_without_bessel():
  rewards = np.array([1, 0, 0, 1, 1], np.float32)
  ids = np.zeros(5, np.int32)
  want = (rewards - rewards.mean()) / rewards.std()
  np.testing.assert_allclose(advantages.pass_at_k(rewards, ids, 1), want, rtol=1e-5)


def test_best_of_group_pays_the_lead_alone():
  rewards = np.array([1.0, 4.0, 2.5, 3.0, 3.0, 9.0], np.float32)
  ids = np.array([0, 0, 0, 1, 1, 2], np.int32)
  got = advantages.best_of_group(rewards, ids)
  std = np.std([1.0, 4.0, 2.5], ddof=1)
  np.testing.assert_allclose(got, [0, 1.5 / (std + 1e-6), 0, 0, 0, 0], rtol=1e-5)
  kept = np.array([1, 1, 0, 1, 1, 1])
  got = advantages.best_of_group(rewards, ids, normalize=False, baseline_mask=kept)
  np.testing.assert_allclose(got, [0, 3.0, 0, 0, 0, 0])


def test_lowers_for_tpu_and_cuda():
  shapes = [jax.ShapeDtypeStruct((ROWS,), kind) for kind in (jnp.float32, jnp.int32)]

  def run(rewards, ids):
    out = {name: estimate(rewards, ids) for name, estimate in RESULTS.items()}
    out["pass"] = advantages.pass_at_k(rewards, ids, 2)
    return out | {"best": advantages.best_of_group(rewards, ids)}

  exported = jax.export.export(jax.jit(run), platforms=["tpu", "cuda"])(*shapes)
  assert exported.platforms == ("tpu", "cuda")


REWARDS_2 = jnp.array([1.0, 0.0])
IDS_2 = jnp.array([0, 0])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: advantages.grpo(REWARDS_2[:, None], IDS_2), r"rewards must be \[B\]"),
    (lambda: advantages.grpo(REWARDS_2, IDS_2[:1]), "group_ids must be"),
    (lambda: advantages.grpo(REWARDS_2, REWARDS_2), "group_ids must be"),
    (lambda: advantages.rloo(REWARDS_2[:1], IDS_2[:1]), "needs at least two rows"),
    (lambda: advantages.rloo(REWARDS_2, IDS_2, singleton="mean"), "singleton must be"),
    (
      lambda: advantages.grpo(REWARDS_2, IDS_2, baseline_mask=IDS_2[:1]),
      "baseline_mask must have shape",
    ),
    (lambda: advantages.opo(REWARDS_2, IDS_2[:1], IDS_2), "lengths must be"),
    (lambda: advantages.pass_at_k(REWARDS_2, IDS_2, 0), "k must be at least 1"),
    (lambda: advantages.pass_at_k(REWARDS_2, IDS_2, 3), "has only 2 rows"),
    (lambda: advantages.gpg(REWARDS_2, IDS_2, scale=0.0), "scale must be above 0"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(call)
