"""On eight devices as on one, on both kinds of mesh, and for platforms not at hand."""

import correction_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax.corrections import (
  adaptive_truncate,
  chain,
  clip,
  normalize,
  reject,
  reject_binary_kl,
  reject_divergence,
  reject_missing,
  reject_negative_divergence,
  reject_probability_difference,
  reject_second_moment,
  reject_stale,
  scale_by_ess,
  truncate_parts,
  veto,
)
from tis_jax.numerics.metrics import finalize
from tis_jax.numerics.rows import Rows, by_row

BATCH, LENGTH = 16, 12
ROWS = oracles.rollouts(seed=21, batch=BATCH, length=LENGTH)
PACKED = oracles.rollouts(seed=22, batch=BATCH, length=LENGTH, packed=True)
RNG = np.random.default_rng(0)
GIVEN = {
  "present": RNG.random(ROWS.mask.shape) < 0.9,
  "group_ids": RNG.integers(0, 4, BATCH).astype(np.int32),
  "advantages": RNG.normal(size=BATCH).astype(np.float32),
  "versions": RNG.integers(3, 6, ROWS.mask.shape).astype(np.int32),
  "rewards": RNG.normal(size=BATCH).astype(np.float32),
}
REJECTIONS = (
  reject_missing(),
  reject_stale(2),
  veto(0.2),
  reject(2.5, level="token"),
  reject(2.0, level="turn"),
  reject_divergence(0.3),
  reject_binary_kl(0.3),
  reject_probability_difference(0.5, by_advantage=True),
  reject_negative_divergence(0.2),
  reject_second_moment(0.08),
)
CHAINS = {
  "adaptive": (
    ROWS,
    chain(*REJECTIONS, adaptive_truncate(high=3.0), normalize("group"), metrics="none"),
  ),
  "prefix": (ROWS, chain(clip(1.5, level="prefix"), scale_by_ess())),
  "min prefix": (
    PACKED,
    chain(reject(1.3, level="turn_geometric"), clip(1.5, level="min_prefix")),
  ),
  "parts": (ROWS, chain(truncate_parts(), normalize(), metrics="none")),
  "packed": (
    PACKED,
    chain(
      *REJECTIONS,
      clip(1.5, level="sequence"),
      normalize(by="sequence"),
      metrics="none",
    ),
  ),
  "measured": (ROWS, chain(reject(1.1, level="geometric"), metrics="full")),
  "packed and measured": (PACKED, chain(reject(1.1, level="geometric"))),
}


def arguments(data):
  given = dict(GIVEN)
  if data.segment_ids is not None:
    given["segment_ids"] = data.segment_ids
  return data.arrays, given


@jax.jit
def run(correct, arrays, given):
  return correct(*arrays, **given, learner_version=6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", CHAINS)
def test_sharded_equals_single(name, kind):
  data, correct = CHAINS[name]
  expected = run(correct, *arguments(data))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  with jax.set_mesh(mesh):
    sharded = jax.device_put(arguments(data), rows)
    out = run(correct, *sharded)
  np.testing.assert_allclose(out.weight, expected.weight, rtol=1e-5)
  np.testing.assert_array_equal(out.mask, expected.mask)
  if correct.stages[0].makes == "mask":
    assert 0 < np.asarray(out.mask).sum() < data.mask.sum()
  assert out.weight.sharding.is_equivalent_to(rows, 2)
  found, wanted = (jax.jit(finalize)(x.metrics) for x in (out, expected))
  for key in wanted:
    np.testing.assert_allclose(
      found[key], wanted[key], rtol=2e-4, atol=1e-5, err_msg=key
    )


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@pytest.mark.parametrize("name", CHAINS)
def test_lowers_for_every_platform(name, platform):
  data, correct = CHAINS[name]
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments(data)
  )
  exported = jax.export.export(
    jax.jit(lambda *args: run(correct, *args)), platforms=[platform]
  )(*shapes)
  assert exported.platforms == (platform,)
  assert "custom_call" not in exported.mlir_module().replace("@Sharding", "")


def test_a_large_batch_is_walked_in_chunks_to_the_same_sums():
  """Big enough for the chunks of the CPU walk, with a remainder."""
  x = np.random.default_rng(0).normal(size=(300, 1111)).astype(np.float32)

  def features(x):
    return Rows({"x": x, "square": x * x}, {"x": x}, {"x": x})

  out = jax.jit(lambda x: by_row(features, x))(x)
  np.testing.assert_allclose(out.total["x"][:, 0], x.sum(1), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(out.total["square"][:, 0], (x**2).sum(1), rtol=1e-5)
  np.testing.assert_array_equal(out.largest["x"][:, 0], x.max(1))
  np.testing.assert_array_equal(out.smallest["x"][:, 0], x.min(1))
  mapped = jax.vmap(lambda scale: by_row(features, scale * x))(jnp.float32([1, 2]))
  np.testing.assert_allclose(mapped.total["x"][0], out.total["x"], rtol=1e-3, atol=1e-3)
  jax.export.export(jax.jit(lambda x: by_row(features, x)), platforms=["tpu", "cpu"])(
    jax.ShapeDtypeStruct(x.shape, jnp.float32)
  )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_large_sharded_batch_is_walked_in_chunks(kind):
  x = np.random.default_rng(0).normal(size=(256, 1111)).astype(np.float32)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
  correct = chain(reject_divergence(0.04, kind="k2"))
  with jax.set_mesh(mesh):
    put = jax.device_put(x * 0.3, NamedSharding(mesh, PartitionSpec("data")))
    out = jax.jit(lambda x: correct(x, jnp.zeros_like(x), jnp.ones_like(x)))(put)
  accepted = ((0.3 * x.astype(np.float64)) ** 2 / 2).mean(1) <= 0.04
  np.testing.assert_array_equal(np.asarray(out.mask).all(1), accepted)
  k1 = finalize(out.metrics)["mismatch/k1"]
  np.testing.assert_allclose(k1, -(0.3 * x).mean(dtype=np.float64), rtol=1e-3)
