"""The metrics against float64 numpy, and their pooling."""

import itertools

import correction_oracles as oracles
import jax
import numpy as np
import pytest

from tis_jax.corrections import chain, reject, truncate
from tis_jax.corrections.details import LENGTHS, LOG_EDGES, POSITIONS, PROBABILITIES
from tis_jax.numerics.metrics import finalize, merge

BATCH, LENGTH = 8, 40
REWARDS = np.float32([1, 0, 1, 0, 1, 1, 0, 0])
CAP, BAND = 1.3, 1.05


def rollouts():
  data = oracles.rollouts(seed=11, batch=BATCH, length=LENGTH)
  data.mask[:, 0] = True  # Responses start at their first token.
  data.old[:, 0], data.sampler[:, 0] = -1.0, -1.1
  data.mask[-1] = False
  data.mask[0, 25:] = False
  data.old[1, 1], data.sampler[1, 1], data.mask[1, 1] = -1.0, -15.0, True
  return data


DATA = rollouts()
PRESENT = np.random.default_rng(0).random(DATA.mask.shape) < 0.95
VERSIONS = np.arange(LENGTH)[None] // 10 + np.zeros((BATCH, 1), int)


def corrected(rows, packed=False):
  correct = chain(
    reject(BAND, level="geometric"), truncate(CAP, level="token"), metrics="full"
  )

  @jax.jit
  def run(old, sampler, mask, given):
    return correct(old, sampler, mask, **given, learner_version=3)

  old, sampler, mask = (x[rows] for x in DATA.arrays)
  given = {"present": PRESENT, "versions": VERSIONS, "rewards": REWARDS}
  given = {name: x[rows] for name, x in given.items()}
  if packed:
    given["rewards"] = np.repeat(REWARDS[rows], LENGTH).reshape(mask.shape)
    given["segment_ids"] = np.arange(len(mask))[:, None] + np.zeros(mask.shape, int)
    pair = lambda x: x.reshape(-1, 2 * LENGTH)
    old, sampler, mask, given = jax.tree.map(pair, (old, sampler, mask, given))
  return run(old, sampler, mask, given)


@pytest.fixture(scope="module")
def out():
  return corrected(slice(None))


@pytest.fixture(scope="module")
def found(out):
  return {name: float(x) for name, x in finalize(out.metrics).items()}


def expected_metrics():
  """Name to value, written out in float64."""
  known = DATA.mask & PRESENT
  d = np.where(known, oracles.log_ratio(DATA), 0)
  rho, n = np.exp(d), known.sum(1)
  rows = DATA.mask.any(1)
  total = d.sum(1)
  accepted = rows & (np.abs(total / np.maximum(n, 1)) <= np.log(BAND))
  product = np.exp(total)[rows]
  learner = -np.where(known, DATA.old, 0).astype(np.float64).sum(1)[rows] / n[rows]
  gap = total[rows] / n[rows]
  sampler = learner + gap
  trains = DATA.mask & accepted[:, None]
  weight = np.where(known, np.minimum(rho, CAP), 1.0)

  def ess(w):
    return w.sum() ** 2 / (len(w) * (w**2).sum())

  return {
    "mismatch/k1": -d[known].mean(),
    "mismatch/k1/std": d[known].std(),
    "mismatch/k1/stderr": d[known].std() / np.sqrt(known.sum()),
    "mismatch/k3": (np.expm1(d) - d)[known].mean(),
    "mismatch/k3/stderr": (np.expm1(d) - d)[known].std() / np.sqrt(known.sum()),
    "mismatch/k1_reverse": (rho * d)[known].mean(),
    "mismatch/k1_reverse/stderr": (rho * d)[known].std() / np.sqrt(known.sum()),
    "mismatch/k3_reverse": (rho * d - np.expm1(d))[known].mean(),
    "mismatch/chi2_token": (rho**2)[known].mean() - 1,
    "mismatch/chi2_token/std": (rho**2)[known].std(),
    "mismatch/chi2_token/stderr": (rho**2)[known].std() / np.sqrt(known.sum()),
    "mismatch/chi2_sequence": (product**2).mean() - 1,
    "mismatch/chi2_sequence/stderr": (product**2).std() / np.sqrt(rows.sum()),
    "mismatch/abs_log_ratio": np.abs(d[known]).mean(),
    "mismatch/log_ratio_max": d[known].max(),
    "mismatch/log_ratio_min": d[known].min(),
    "mismatch/catastrophic_tokens": 1 / known.sum(),
    "mismatch/ess_sequence": ess(product),
    "mismatch/sequence_log_ratio": total[rows].mean(),
    "mismatch/ppl_learner": np.exp(learner).mean(),
    "mismatch/ppl_sampler": np.exp(sampler).mean(),
    "mismatch/log_ppl_learner": learner.mean(),
    "mismatch/log_ppl_sampler": sampler.mean(),
    "mismatch/log_ppl_gap": gap.mean(),
    "mismatch/log_ppl_gap_abs": np.abs(gap).mean(),
    "mismatch/log_ppl_gap_max": gap.max(),
    "mismatch/log_ppl_gap_min": gap.min(),
    "mismatch/ppl_ratio": np.exp(gap).mean(),
    "tokens/count": DATA.mask.sum(),
    "tokens/missing": (DATA.mask & ~PRESENT).sum() / DATA.mask.sum(),
    "sequences/count": rows.sum(),
    "rejected/tokens": 1 - trains.sum() / DATA.mask.sum(),
    "rejected/sequences": 1 - accepted.sum() / rows.sum(),
    "reject/sequences_high": (gap > np.log(BAND)).mean(),
    "reject/sequences_low": (gap < -np.log(BAND)).mean(),
    "reject/high": DATA.mask[rows][gap > np.log(BAND)].sum() / DATA.mask.sum(),
    "truncate/high": (rho > CAP)[trains].mean(),
    "truncate/low": (rho < 1 / CAP)[trains].mean(),
    "weight/raw_mean": rho[known].mean(),
    "weight/raw_mean/std": rho[known].std(),
    "weight/raw_max": rho[known].max(),
    "weight/raw_min": rho[known].min(),
    "weight/ess_raw": ess(rho[known]),
    "weight/mean": weight[trains].mean(),
    "weight/mean/std": weight[trains].std(),
    "weight/max": weight[trains].max(),
    "weight/min": weight[trains].min(),
    "weight/ess": ess(weight[trains]),
    "weight/gradient_scale": weight[trains].sum() / DATA.mask.sum(),
    "reward/sampler": REWARDS[rows].mean(),
    "reward/learner_weighted": (product * REWARDS[rows]).mean(),
    "reward/learner_normalized": (product * REWARDS[rows]).sum() / product.sum(),
    "rejected/positive_sequences": 1 - accepted[rows & (REWARDS > 0)].mean(),
    "rejected/other_sequences": 1 - accepted[rows & (REWARDS <= 0)].mean(),
  }


@pytest.mark.parametrize("name", expected_metrics())
def test_metric(found, name):
  np.testing.assert_allclose(found[name], expected_metrics()[name], rtol=3e-5)


def test_every_number_is_accounted_for(found):
  bare = {name for name in found if not name.endswith(("/std", "/stderr"))}
  known = set(expected_metrics())
  families = ("log_ratio_by_", "by_length/", "weight/raw_perc", "weight/percentiles")
  unknown = {n for n in bare - known if not n.startswith(families)}
  assert unknown == {"reject/low"}


def test_log_ratio_by_position_probability_and_staleness(found):
  known = DATA.mask & PRESENT
  d = oracles.log_ratio(DATA)
  with np.errstate(all="ignore"):
    probability = np.exp(np.float64(DATA.sampler))
  position = np.broadcast_to(np.arange(LENGTH), DATA.mask.shape)
  for name, values, starts in (
    ("position", position, POSITIONS),
    ("probability", probability, PROBABILITIES),
    ("staleness", 3 - VERSIONS, tuple(range(1, 9))),
  ):
    edges = (0, *starts, np.inf)
    for low, high in itertools.pairwise(edges):
      inside = d[known & (values >= low) & (values < high)]
      key = f"log_ratio_by_{name}/{low:g}"
      expected = inside.mean() if inside.size else 0.0
      np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-6)
      spread = inside.std() if inside.size else 0.0
      np.testing.assert_allclose(found[f"{key}/std"], spread, rtol=1e-3, atol=1e-3)


def test_effective_sample_size_and_share_accepted_by_length(found):
  known = DATA.mask & PRESENT
  total = np.where(known, oracles.log_ratio(DATA), 0).sum(1)
  lengths, number = DATA.mask.sum(1), known.sum(1)
  edges = (0, *LENGTHS, np.inf)
  for low, high in itertools.pairwise(edges):
    rows = (lengths >= low) & (lengths < high) & (lengths > 0)
    w = np.exp(total[rows])
    ess = w.sum() ** 2 / (len(w) * (w**2).sum()) if len(w) else 0.0
    np.testing.assert_allclose(found[f"by_length/{low}/ess"], ess, rtol=1e-5)
    accepted = np.abs(total / np.maximum(number, 1))[rows] <= np.log(BAND)
    share = accepted.mean() if len(w) else 0.0
    np.testing.assert_allclose(found[f"by_length/{low}/accepted"], share, rtol=1e-6)


def test_percentiles_lie_within_their_bin(found, out):
  known = DATA.mask & PRESENT
  rho = np.exp(oracles.log_ratio(DATA))
  weight = np.where(known, np.minimum(rho, CAP), 1.0)
  edges = np.exp(LOG_EDGES)
  for name, values in (
    ("raw_percentiles", rho[known]),
    ("percentiles", weight[np.asarray(out.mask)]),
  ):
    for percent in (1, 5, 25, 50, 75, 95, 99):
      exact = np.quantile(values, percent / 100, method="inverted_cdf")
      bin_ = np.searchsorted(edges, exact)
      value = found[f"weight/{name}/p{percent:02d}"]
      assert edges[bin_ - 1] <= value <= edges[bin_] * (1 + 1e-6), (name, percent)


def test_parts_pool_to_the_whole_with_every_metric(out, found):
  parts = [corrected(slice(i, i + 4)).metrics for i in (0, 4)]
  pooled = finalize(merge(*parts))
  assert pooled.keys() == found.keys()
  for name, value in pooled.items():
    np.testing.assert_allclose(value, found[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_packed_rows_give_the_same_numbers(found):
  numbers = finalize(corrected(slice(None), packed=True).metrics)
  assert numbers.keys() == found.keys()
  for name, value in numbers.items():
    np.testing.assert_allclose(value, found[name], rtol=1e-4, atol=1e-5, err_msg=name)
