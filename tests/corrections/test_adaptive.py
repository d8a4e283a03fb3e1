"""The adaptive cap: what it chooses is the best of its candidates, and it says why."""

import correction_oracles as oracles
import jax
import numpy as np
import pytest

from tis_jax.corrections import adaptive_truncate, chain
from tis_jax.numerics.metrics import finalize

CANDIDATES = 12


@jax.jit
def run(correct, arrays, advantages):
  out = correct(*arrays, advantages=advantages)
  numbers = finalize(out.metrics)
  prefix = "adaptive_truncate/"
  return out.weight, {
    name.removeprefix(prefix): x for name, x in numbers.items() if prefix in name
  }


def stage(level, low=1.0, high=50.0, ess_floor=0.3):
  options = {"low": low, "high": high, "ess_floor": ess_floor}
  return chain(adaptive_truncate(level=level, candidates=CANDIDATES, **options))


def candidates(rho, size, low, high):
  """Cap, squared-error estimate and effective sample size of each candidate."""
  for cap in np.geomspace(low, high, CANDIDATES):
    weight = np.minimum(rho, cap)
    bias = (size * np.maximum(rho - cap, 0)).mean()
    noise = (size**2 * weight**2).mean() / len(rho)
    yield cap, bias**2 + noise, weight.mean() ** 2 / (weight**2).mean()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("ess_floor", [0.0, 0.5, 0.8])
def test_it_takes_the_best_candidate_above_the_floor(level, ess_floor):
  data = oracles.rollouts(seed=4, batch=6, noise=0.7)
  advantages = np.random.default_rng(0).normal(size=6).astype(np.float32)
  size = np.abs(np.broadcast_to(advantages[:, None], data.mask.shape))
  rho = np.exp(oracles.level(data, level))
  if level == "token":
    rho, size = rho[data.mask], size[data.mask]
  else:
    rows = data.mask.any(1)
    first = np.argmax(data.mask, 1)[rows]
    rho, size = rho[rows, first], size[rows, first]
  table = list(candidates(rho, size, 1.0, 50.0))
  best = min(table, key=lambda row: row[1])
  allowed = [row for row in table if row[2] >= ess_floor]
  chosen = min(allowed, key=lambda row: row[1]) if allowed else table[0]
  weight, found = run(stage(level, ess_floor=ess_floor), data.arrays, advantages)
  np.testing.assert_allclose(found["cap"], chosen[0], rtol=1e-4)
  np.testing.assert_allclose(found["ess"], chosen[2], rtol=1e-4)
  error = found["bias"] ** 2 + found["variance"]
  np.testing.assert_allclose(error, chosen[1], rtol=1e-3)
  assert found["why/out_of_reach"] == (not allowed)
  assert found["why/floor"] == (bool(allowed) and chosen is not best)
  assert sum(found[f"why/{why}"] for why in ("error", "floor", "out_of_reach")) == 1
  expected = np.minimum(np.exp(oracles.level(data, level)), chosen[0])
  np.testing.assert_allclose(weight, np.where(data.mask, expected, 0), rtol=1e-4)


def test_a_missing_log_prob_counts_as_little_as_a_masked_one():
  data = oracles.rollouts(seed=4, batch=6, noise=0.7)
  advantages = np.random.default_rng(0).normal(size=6).astype(np.float32)
  missing = np.random.default_rng(1).random(data.mask.shape) < 0.3
  sampler = np.where(missing, np.nan, data.sampler)
  (_, found), (_, wanted) = (
    run(stage("sequence"), (data.old, sampler, mask), advantages)
    for mask in (data.mask, data.mask & ~missing)
  )
  for name in ("cap", "bias", "variance", "ess"):
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


def test_more_samples_ask_for_a_higher_cap():
  rng = np.random.default_rng(0)
  caps = []
  for batch in (8, 64, 4096):
    d = rng.normal(-0.5, 1.0, (batch, 1)).astype(np.float32)
    arrays = d, np.zeros_like(d), np.ones_like(d)
    advantages = np.ones(batch, np.float32)
    _, found = run(stage("sequence", ess_floor=0.0), arrays, advantages)
    caps.append(float(found["cap"]))
  assert caps[0] < caps[1] < caps[2]


def test_an_empty_batch_takes_the_lowest_cap():
  zeros = np.zeros((6, 12), np.float32)
  weight, found = run(stage("sequence"), (zeros,) * 3, np.ones(6, np.float32))
  assert not np.asarray(weight).any()
  assert found["cap"] == 1.0 and found["why/out_of_reach"] == 1
  assert all(np.isfinite(x) for x in found.values())
