"""Every stage against its formula in float64."""

import correction_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.corrections import (
  chain,
  check_present,
  clip,
  importance,
  interpolate_old_logp,
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
  truncate,
  truncate_parts,
  veto,
  zero_outside,
)
from tis_jax.corrections.state import LEVELS
from tis_jax.numerics.metrics import finalize

DATA = oracles.rollouts(seed=1)
PACKED = oracles.rollouts(seed=2, packed=True)
ROWS = len(DATA.mask)


def run(*stages, data=DATA, **kwargs):
  """Weight and mask, with the metrics left out for the compiler's sake."""
  out = chain(*stages, metrics="none")(
    *data.arrays, segment_ids=data.segment_ids, **kwargs
  )
  return np.asarray(out.weight), np.asarray(out.mask)


def band(level, data):
  """A band that some of the ratios lie outside of, on either side."""
  rho = np.exp(oracles.level(data, level))[data.mask]
  return np.quantile(rho, 0.8) * 1.0001, np.quantile(rho, 0.2) * 1.0001


@pytest.fixture(scope="module", params=[DATA, PACKED], ids=["rows", "packed"])
def by_level(request):
  """Five stages at every level on one batch, compiled together."""
  data = request.param

  @jax.jit
  def corrected(old, sampler, mask, segment_ids):
    found = {}
    for level in LEVELS:
      high, low = band(level, data)
      for stage in (
        importance(level),
        truncate(high, level=level),
        clip(high, low, level=level),
        zero_outside(high, low, level=level),
        reject(high, low, level=level),
      ):
        correct = chain(stage, metrics="none")
        out = correct(old, sampler, mask, segment_ids=segment_ids)
        found[level, stage.name] = out.weight, out.mask
    return {f"{level} {name}": out for (level, name), out in found.items()}

  return data, corrected(*data.arrays, data.segment_ids)


@pytest.mark.parametrize("level", LEVELS)
def test_weights_and_rejection_at_every_level(by_level, level):
  data, found = by_level
  rho = np.exp(oracles.level(data, level))
  high, low = band(level, data)
  inside = (rho <= high) & (rho >= low)
  for name, expected in (
    ("importance", rho),
    ("truncate", np.minimum(rho, high)),
    ("clip", np.clip(rho, low, high)),
    ("zero_outside", rho * inside),
  ):
    weight, mask = found[f"{level} {name}"]
    np.testing.assert_allclose(weight, np.where(data.mask, expected, 0), rtol=2e-5)
    np.testing.assert_array_equal(mask, data.mask)
  weight, mask = found[f"{level} reject"]
  np.testing.assert_array_equal(mask, data.mask & inside)
  np.testing.assert_array_equal(weight, data.mask)
  assert mask.sum() not in (0, data.mask.sum())


def test_small_ratios_keep_their_digits():
  d = np.float32([[-15.0, -8.0, -3.0, 0.001, 6.0]])
  out = chain(importance("token"), metrics="none")(d, np.zeros_like(d), np.ones((1, 5)))
  np.testing.assert_allclose(out.weight, np.exp(d.astype(np.float64)), rtol=1e-6)


def test_bounds_are_inclusive_and_the_lower_one_is_the_inverse():
  rho = np.array([[0.5, 0.499, 2.0, 2.002, 1.0]])
  arrays = np.log(rho).astype(np.float32), np.zeros((1, 5)), np.ones((1, 5))
  out = chain(reject(2.0, level="token"))(*arrays)
  np.testing.assert_array_equal(out.mask, [[True, False, True, False, True]])
  out = chain(reject(2.0, 0.0, level="token"))(*arrays)
  np.testing.assert_array_equal(out.mask, [[True, True, True, False, True]])
  out = chain(reject(low=0.5, level="token"))(*arrays)
  np.testing.assert_array_equal(out.mask, [[True, False, True, True, True]])


@pytest.mark.parametrize("data", [DATA, PACKED], ids=["rows", "packed"])
def test_veto_drops_the_sequences_with_an_outlier(data):
  d = oracles.log_ratio(data)
  low, high = np.log(0.6), np.log(1.7)
  worst = oracles.over_sequences(data, d, np.min)
  best = oracles.over_sequences(data, d, np.max)
  _, mask = run(veto(0.6), data=data)
  np.testing.assert_array_equal(mask, data.mask & (worst >= low))
  _, mask = run(veto(0.6, 1.7), data=data)
  np.testing.assert_array_equal(mask, data.mask & (worst >= low) & (best <= high))
  assert mask.sum() not in (0, data.mask.sum())


KINDS = [
  (kind, reduce)
  for kind in ("k1", "k2", "k3", "exp_abs")
  for reduce in ("token", "sum", "mean", "max")
  if (kind, reduce) != ("k1", "max")  # veto bounds the extremes of k1
]


def divergence(kind, reduce):
  """The statistic, and a bound that some of it exceeds."""
  d = oracles.log_ratio(DATA)
  values = {
    "k1": -d,
    "k2": d**2 / 2,
    "k3": np.expm1(d) - d,
    "exp_abs": np.exp(np.abs(d)),
  }[kind]
  if reduce != "token":
    reducer = {"sum": np.sum, "mean": np.mean, "max": np.max}[reduce]
    values = oracles.over_sequences(DATA, values, reducer)
  return values, np.median(values[DATA.mask & (values > 0)]) * 1.01


@pytest.fixture(scope="module")
def by_divergence():
  @jax.jit
  def corrected(*arrays):
    return {
      f"{kind} {reduce}": chain(
        reject_divergence(divergence(kind, reduce)[1], kind=kind, reduce=reduce),
        metrics="none",
      )(*arrays).mask
      for kind, reduce in KINDS
    }

  return corrected(*DATA.arrays)


@pytest.mark.parametrize(("kind", "reduce"), KINDS)
def test_divergences(by_divergence, kind, reduce):
  values, bound = divergence(kind, reduce)
  expected = DATA.mask & (values <= bound)
  if kind == "k1":
    expected &= values >= -bound
  np.testing.assert_array_equal(by_divergence[f"{kind} {reduce}"], expected)
  assert expected.sum() not in (0, DATA.mask.sum())


def binary_kl(old, sampler):
  """The larger of the two KLs between "this token or another", in float64."""
  p, q = (np.clip(np.exp(np.float64(x)), 1e-6, 1 - 1e-6) for x in (old, sampler))
  one_way = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
  return np.maximum(one_way, q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))


@pytest.mark.parametrize("reduce", ["token", "sum", "mean", "max"])
def test_binary_kl(reduce):
  old, sampler = (np.where(DATA.mask, x, -1.0) for x in (DATA.old, DATA.sampler))
  # No log-prob is above 0, where the KL of two events has no meaning.
  old = np.minimum(old, 0.0)
  values = np.where(DATA.mask, binary_kl(old, sampler), 0.0)
  if reduce != "token":
    reducer = {"sum": np.sum, "mean": np.mean, "max": np.max}[reduce]
    values = oracles.over_sequences(DATA, values, reducer)
  bound = np.median(values[DATA.mask]) * 1.01
  _, mask = run(reject_binary_kl(bound, reduce=reduce))
  np.testing.assert_array_equal(mask, DATA.mask & (values <= bound))
  assert mask.sum() not in (0, DATA.mask.sum())


def test_binary_kl_keeps_its_digits_near_certainty_and_holds_certainties_apart():
  # 1 - p from 3e-7, under the floor, to 1e-2; rare tokens far apart in their ratio.
  rest = np.array([3e-7, 1e-5, 2e-5, 1e-3, 1e-2, 0.0])
  other = np.array([1e-3, 2e-5, 1e-5, 1e-2, 1e-3, 0.0])
  old, sampler = np.log1p(-rest)[None], np.log1p(-other)[None]
  for a, b in ((old, sampler), (np.log(rest + 1e-9)[None], np.log(other + 1e-9)[None])):
    want = binary_kl(a, b)
    found = jax.vmap(
      lambda high, a=a, b=b: chain(reject_binary_kl(high), metrics="none")(
        np.float32(a), np.float32(b), np.ones((1, 6))
      ).mask[0]
    )
    at = lambda factor, want=want: np.float32(np.maximum(want[0] * factor, 1e-12))
    assert np.diagonal(found(at(1.0005)))[:].all()
    assert not np.diagonal(found(at(0.9995)))[:5].any()


@pytest.mark.parametrize("reduce", ["token", "sum", "mean"])
def test_probability_difference(reduce):
  with np.errstate(all="ignore"):
    old, sampler = (np.exp(np.float64(x)) for x in (DATA.old, DATA.sampler))
  values = np.where(DATA.mask, np.where(DATA.mask, old, 0) - sampler, 0)
  if reduce != "token":
    reducer = {"sum": np.sum, "mean": np.mean}[reduce]
    values = oracles.over_sequences(DATA, values, reducer)
  bound = np.median(np.abs(values[DATA.mask])) * 1.01
  _, mask = run(reject_probability_difference(bound, reduce=reduce))
  np.testing.assert_array_equal(mask, DATA.mask & (np.abs(values) <= bound))
  assert mask.sum() not in (0, DATA.mask.sum())


def test_probability_difference_bounds_the_side_the_gradient_pushes_to():
  old = np.log([[0.9, 0.9, 0.9, 0.1, 0.1, 0.1]])
  sampler = np.log([[0.5] * 6])
  advantages = np.array([[1.0, -1.0, 0.0] * 2])
  stage = reject_probability_difference(0.2, by_advantage=True)
  out = chain(stage)(old, sampler, np.ones((1, 6)), advantages=advantages)
  np.testing.assert_array_equal(out.mask, [[False, True, True, True, False, False]])


@pytest.mark.parametrize("by_token", [False, True])
def test_negative_divergence(by_token):
  rng = np.random.default_rng(0)
  shape = DATA.mask.shape if by_token else (ROWS,)
  advantages = rng.normal(size=shape).astype(np.float32)
  k1 = -oracles.level(DATA, "geometric")
  _, mask = run(reject_negative_divergence(0.02), advantages=advantages)
  negative = advantages < 0 if by_token else advantages[:, None] < 0
  np.testing.assert_array_equal(mask, DATA.mask & ~((k1 > 0.02) & negative))
  assert mask.sum() not in (0, DATA.mask.sum())


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.2, 0.5, 0.9, 1.0])
def test_second_moment_drops_the_largest_first(share):
  squares = np.float32(oracles.log_ratio(DATA)) ** 2
  ordered = np.sort(squares[DATA.mask].astype(np.float64))
  means = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
  bound = max(share * means[-1], 1e-12) * (1 + 1e-6)
  expected = (means <= bound).sum()
  _, mask = run(reject_second_moment(bound))
  assert mask.sum() == expected
  if 0 < expected < DATA.mask.sum():
    assert squares[mask].max() < squares[DATA.mask & ~mask].min()


def test_normalize_over_the_batch():
  weight = np.minimum(np.exp(oracles.log_ratio(DATA)), 1.2)
  found, _ = run(truncate(1.2), normalize())
  expected = weight / weight[DATA.mask].mean()
  np.testing.assert_allclose(found, np.where(DATA.mask, expected, 0), rtol=1e-5)
  held = DATA.mask.any(axis=1)
  means = np.where(DATA.mask, weight, 0).sum(1)[held] / DATA.mask.sum(1)[held]
  found, _ = run(truncate(1.2), normalize(by="sequence"))
  expected = weight / means.mean()
  np.testing.assert_allclose(found, np.where(DATA.mask, expected, 0), rtol=1e-5)


def test_normalize_over_packed_sequences():
  weight = np.minimum(np.exp(oracles.level(PACKED, "sequence")), 1.2)
  units = oracles.unit_of(PACKED)
  means = [weight[units == u].mean() for u in range(units.max() + 1)]
  found, _ = run(truncate(1.2, level="sequence"), normalize(by="sequence"), data=PACKED)
  expected = np.where(PACKED.mask, weight / np.mean(means), 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("by", ["token", "sequence"])
def test_normalize_over_prompt_groups(by):
  groups = np.array([7, -3, 7, 7, -3, 2**31 - 1], np.int32)
  weight = np.minimum(np.exp(oracles.level(DATA, "token")), 1.2)
  expected = np.zeros_like(weight)
  for group in np.unique(groups):
    rows = groups == group
    mask = DATA.mask[rows]
    if not mask.any():
      continue
    if by == "token":
      mean = weight[rows][mask].mean()
    else:
      sums = np.where(mask, weight[rows], 0).sum(1)
      mean = (sums[mask.any(1)] / mask.sum(1)[mask.any(1)]).mean()
    expected[rows] = weight[rows] / mean
  found, _ = run(truncate(1.2), normalize("group", by=by), group_ids=groups)
  np.testing.assert_allclose(found, np.where(DATA.mask, expected, 0), rtol=1e-5)


def test_scale_by_ess_shortens_the_step():
  weight = np.exp(oracles.level(DATA, "sequence"))
  rows = np.array([w[m][0] for w, m in zip(weight, DATA.mask, strict=True) if m.any()])
  share = rows.sum() ** 2 / (len(rows) * (rows**2).sum())
  found, _ = run(importance("sequence"), scale_by_ess())
  expected = np.where(DATA.mask, weight * np.sqrt(share), 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert share < 0.99


def test_missing_log_probs_weigh_one_and_are_counted():
  present = np.ones_like(DATA.mask)
  present[0, :3] = False
  sampler = DATA.sampler.copy()
  lost = tuple(np.argwhere(DATA.mask)[-1])
  sampler[lost] = np.nan
  data = DATA._replace(sampler=sampler)
  gone = DATA.mask & ~present
  gone[lost] = True
  out = chain(zero_outside(1.1, 1.05))(*data.arrays, present=present)
  np.testing.assert_array_equal(np.asarray(out.weight)[gone], 1.0)
  np.testing.assert_array_equal(out.mask, DATA.mask)
  missing = finalize(out.metrics)["tokens/missing"]
  np.testing.assert_allclose(missing, gone.sum() / DATA.mask.sum(), rtol=1e-6)
  # A rejection never takes a token for a ratio that nobody knows.
  _, mask = run(reject(1.1, 1.05, level="token"), data=data, present=present)
  assert mask[gone].all()
  # The levels leave it out of both the product and the length.
  known = DATA.mask & ~gone
  d = oracles.log_ratio(DATA)
  expected = np.where(known, d, 0).sum(1) / np.maximum(known.sum(1), 1)
  weight, _ = run(importance("geometric"), data=data, present=present)
  rows = DATA.mask.any(1)
  np.testing.assert_allclose(weight.max(1)[rows], np.exp(expected[rows]), rtol=1e-5)
  _, mask = run(reject_missing(), data=data, present=present)
  np.testing.assert_array_equal(mask, known)
  _, mask = run(reject_missing("sequence"), data=data, present=present)
  np.testing.assert_array_equal(mask, DATA.mask & ~gone.any(1, keepdims=True))


def test_missing_log_probs_can_be_refused():
  present = DATA.mask.copy()
  check_present(DATA.sampler, DATA.mask, present)
  present[2, np.argmax(DATA.mask[2])] = False
  with pytest.raises(ValueError, match=r"1 of \d+ tokens .* in rows \[2\]"):
    check_present(DATA.sampler, DATA.mask, present)


def test_staleness_drops_tokens_or_sequences():
  versions = np.where(np.arange(12)[None] < 5, 3, 7) + np.zeros((ROWS, 1), int)
  versions[0] = 7
  versions[~DATA.mask] = -99
  given = {"versions": versions, "learner_version": 8}
  _, mask = run(reject_stale(1), **given)
  np.testing.assert_array_equal(mask, DATA.mask & (versions == 7))
  _, mask = run(reject_stale(1, level="sequence"), **given)
  stale = (DATA.mask & (versions < 7)).any(1, keepdims=True)
  np.testing.assert_array_equal(mask, DATA.mask & ~stale)


def test_parts_get_a_cap_each():
  rng = np.random.default_rng(0)
  with np.errstate(all="ignore"):
    middle = np.where(DATA.mask, 0.5 * DATA.old + 0.5 * DATA.sampler, np.nan)
    middle = np.float32(middle + 0.3 * rng.normal(size=middle.shape))
    numeric = np.exp(np.float64(middle) - DATA.sampler)
    stale = np.exp(np.float64(DATA.old) - middle)
  weight, _ = run(truncate_parts(1.1, 1.3), version_logp=middle)
  expected = np.minimum(numeric, 1.1) * np.minimum(stale, 1.3)
  np.testing.assert_allclose(weight, np.where(DATA.mask, expected, 0), rtol=1e-5)
  versions = np.arange(12)[None] // 6 + np.zeros((ROWS, 1), int)
  weight, _ = run(truncate_parts(1.1, 1.3), versions=versions, learner_version=1)
  cap = np.where(versions == 1, 1.1, 1.1 * 1.3)
  expected = np.minimum(np.exp(oracles.log_ratio(DATA)), cap)
  np.testing.assert_allclose(weight, np.where(DATA.mask, expected, 0), rtol=1e-5)
  with pytest.raises(ValueError, match="version_logp=, or versions="):
    run(truncate_parts())


def test_interpolated_old_logp_lies_between_the_versions():
  logp, sampler = np.float32([[-1.0] * 4]), np.float32([[-3.0] * 4])
  found = interpolate_old_logp(logp, sampler, jnp.array([[6, 8, 9, 10]]), 10)
  # (v_old - v) / (v_now - v) = 3/4, 1/2, 0 and (nothing to interpolate) 0.
  np.testing.assert_allclose(found, [[-1.5, -2.0, -3.0, -3.0]])
  versions = jnp.array([[0, 5, 9, 10]])
  now = interpolate_old_logp(logp, sampler, versions, 10, lag=0)
  np.testing.assert_allclose(now, [[-1.0, -1.0, -1.0, -3.0]])
  slope = jax.grad(lambda x: interpolate_old_logp(x, sampler, versions, 10).sum())(logp)
  assert not slope.any()
  missing = np.where(np.arange(4) == 1, np.nan, sampler)
  found = interpolate_old_logp(logp, missing, versions, 10)
  np.testing.assert_allclose(found[0, 1], logp[0, 1])
  with pytest.raises(ValueError, match="versions has shape"):
    interpolate_old_logp(logp, sampler, versions[0], 10)


def test_the_smallest_ratio_before_a_token_is_not_its_own_nor_a_missing_one():
  d = np.log([[4.0, 0.5, 3.0, 2.0, 8.0]])
  given = d, np.zeros((1, 5)), np.array([[1, 0, 1, 1, 1]])
  correct = chain(importance("min_prefix"))
  # Nothing stands before the first, and all ratios before the last are above 1.
  np.testing.assert_allclose(
    correct(*given).weight, [[4.0, 0.0, 3.0 * 4.0, 2.0 * 3.0, 8.0 * 2.0]], rtol=1e-6
  )
  # A missing one is no ratio of 1 to those after it.
  present = np.array([[1, 1, 1, 0, 1]])
  weight = correct(*given, present=present).weight
  np.testing.assert_allclose(weight, [[4.0, 0.0, 12.0, 3.0, 8.0 * 3.0]], rtol=1e-6)
  # A rejected one is no more of the prefix.
  first = chain(reject(2.5, 0.0, level="token"), importance("min_prefix"))
  np.testing.assert_allclose(first(*given).weight[0, 4], 2.0)


def test_stages_act_in_the_order_written():
  d = oracles.log_ratio(DATA)
  kept = DATA.mask & (np.abs(d) <= np.log(1.3))
  first, _ = run(reject(1.3, level="token"), importance("sequence"))
  product = np.exp(oracles.level(DATA, "sequence", tokens=kept))
  np.testing.assert_allclose(first, np.where(DATA.mask, product, 0), rtol=1e-5)
  second, mask = run(importance("sequence"), reject(1.3, level="token"))
  product = np.exp(oracles.level(DATA, "sequence"))
  np.testing.assert_allclose(second, np.where(DATA.mask, product, 0), rtol=1e-5)
  np.testing.assert_array_equal(mask, kept)
