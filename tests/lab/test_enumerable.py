"""The lab's exact numbers, and what they prove of the corrections."""

import numpy as np
import pytest

from tis_jax.corrections import chain, importance, normalize, presets, truncate
from tis_jax.lab import bias_table, enumerable

PROBLEM = enumerable.random_problem(3, 4, noise=0.5, seed=1)
ENDING = enumerable.random_problem(3, 5, noise=0.5, end_token=1, seed=2)
SMALL = enumerable.random_problem(2, 2, noise=0.7, seed=3)
ONE = enumerable.random_problem(3, 1, noise=0.9, seed=4)
# The same policy on both sides.
EQUAL = PROBLEM._replace(sampler=PROBLEM.learner)


@pytest.mark.parametrize("problem", [PROBLEM, ENDING, SMALL])
def test_both_policies_spend_their_probability_once(problem):
  for table in (problem.learner, problem.sampler):
    np.testing.assert_allclose(problem.probability(table).sum(), 1, rtol=1e-12)
  chance = problem.probability(problem.learner)
  np.testing.assert_allclose(chance @ problem.outcome_advantages, 0, atol=1e-12)
  by_token = problem.token_advantages
  np.testing.assert_allclose(chance @ by_token, 0, atol=1e-12)
  # A sequence's advantages by token add up to its advantage by outcome.
  np.testing.assert_allclose(by_token.sum(1), problem.outcome_advantages, atol=1e-12)


@pytest.mark.parametrize("problem", [PROBLEM, ENDING])
def test_the_true_gradient_is_the_slope_of_the_expected_reward(problem):
  gradient = enumerable.true_gradient(problem)
  rng = np.random.default_rng(0)
  direction = rng.normal(size=problem.learner.shape)

  def reward(step):
    table = problem.learner + step * direction
    table = table - np.log(np.exp(table).sum(1, keepdims=True))
    return problem.probability(table) @ problem.rewards

  slope = (reward(1e-5) - reward(-1e-5)) / 2e-5
  np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-8)


@pytest.mark.parametrize("problem", [PROBLEM, ENDING], ids=["fixed", "ending"])
@pytest.mark.parametrize(
  ("correct", "critic"),
  [
    (presets.seq_is(), False),
    (presets.seq_tis(1e6), False),
    (presets.seq_mis(1e6), False),
    (presets.seq_is(), True),
    (chain(importance("prefix")), True),
    (chain(truncate(1e6, level="prefix")), True),
  ],
  ids=["is", "tis", "mis", "is+critic", "prefix+critic", "prefix tis+critic"],
)
def test_unbiased_corrections_are_unbiased(problem, correct, critic):
  found = enumerable.exact(problem, correct, critic=critic)
  assert found.relative_bias < 1e-10
  assert abs(found.cosine - 1) < 1e-10


@pytest.mark.parametrize(
  ("correct", "critic", "least"),
  [
    (chain(), False, 0.3),
    (presets.tis(), False, 0.3),
    (chain(importance("token")), True, 0.05),
    (chain(importance("prefix")), False, 0.1),
    (presets.seq_tis(), False, 0.01),
    (presets.sequence_mask(), False, 0.1),
  ],
)
def test_biased_corrections_are_biased(correct, critic, least):
  assert enumerable.exact(PROBLEM, correct, critic=critic).relative_bias > least


def test_bias_falls_and_variance_grows_with_the_cap():
  found = [enumerable.exact(PROBLEM, presets.seq_tis(c)) for c in (1.0, 1.5, 3.0, 8.0)]
  bias = [one.relative_bias for one in found]
  assert bias == sorted(bias, reverse=True) and bias[-1] < 0.05 * bias[0]
  assert np.all(np.diff([one.variance for one in found]) > 0)


@pytest.mark.parametrize(
  "correct",
  [presets.tis(), presets.icepop(), presets.geometric_mask(), presets.tv_mask()],
)
def test_nothing_is_biased_on_policy(correct):
  found = enumerable.exact(EQUAL, correct)
  assert found.relative_bias < 1e-10 and found.accepted == 1


def test_exact_numbers_are_what_sampling_converges_to():
  correct = chain(presets.seq_tis(1.5), metrics="none")
  found = enumerable.exact(SMALL, correct)
  rng = np.random.default_rng(0)
  chance = SMALL.probability(SMALL.sampler)
  draws = rng.choice(len(chance), size=400_000, p=chance / chance.sum())
  rho = SMALL.probability(SMALL.learner) / chance
  coefficient = np.minimum(rho, 1.5) * SMALL.outcome_advantages
  estimates = np.zeros((len(chance), *SMALL.learner.shape))
  for i, (tokens, nodes) in enumerate(zip(SMALL.tokens, SMALL.nodes, strict=True)):
    for token, node in zip(tokens, nodes, strict=True):
      estimates[i, node] -= coefficient[i] * np.exp(SMALL.learner[node])
      estimates[i, node, token] += coefficient[i]
  sampled = estimates[draws]
  error = np.sqrt(found.variance / len(draws))
  mean = found.gradient + found.bias
  assert np.linalg.norm(sampled.mean(0) - mean) < 4 * error
  np.testing.assert_allclose(sampled.var(0).sum(), found.variance, rtol=0.02)


def test_batches_average_what_takes_each_sequence_by_itself():
  one = enumerable.exact(SMALL, presets.tis())
  three = enumerable.exact_batch(SMALL, presets.tis(), size=3)
  np.testing.assert_allclose(three.bias, one.bias, atol=1e-12)
  np.testing.assert_allclose(three.variance, one.variance / 3, rtol=1e-10)
  np.testing.assert_allclose(three.accepted, one.accepted)


def test_self_normalisation_has_a_bias_that_falls_with_the_batch():
  correct = chain(importance("sequence"), normalize(by="sequence"))
  bias = [
    enumerable.exact_batch(SMALL, correct, size=n).relative_bias for n in (1, 2, 4, 6)
  ]
  assert bias == sorted(bias, reverse=True) and bias[-1] < 0.5 * bias[0]
  # A batch of one is weighed by 1, whatever its ratio.
  uncorrected = enumerable.exact(SMALL, chain()).relative_bias
  np.testing.assert_allclose(bias[0], uncorrected, rtol=1e-10)
  by_group = chain(importance("sequence"), normalize("group", by="sequence"))
  grouped = enumerable.exact_batch(SMALL, by_group, size=4, groups=True)
  np.testing.assert_allclose(grouped.relative_bias, bias[2], rtol=1e-5)


def test_what_cannot_be_enumerated_is_refused():
  with pytest.raises(ValueError, match="cannot enumerate"):
    enumerable.random_problem(10, 10)
  with pytest.raises(ValueError, match="cannot enumerate"):
    enumerable.exact_batch(PROBLEM, presets.tis(), size=5)
  with pytest.raises(ValueError, match="use exact_batch"):
    enumerable.exact(PROBLEM, presets.adaptive())


def test_the_table_sets_every_preset_side_by_side():
  rows = {row.name: row for row in bias_table.single_table(0.3, length=3, seeds=2)}
  assert rows.keys() == bias_table.SINGLE.keys()
  assert rows["seq_is()"].bias < 1e-10 < rows["tis(2)"].bias
  assert rows["geometric_mask(1.01)"].accepted < 0.5 < rows["tis(2)"].accepted == 1
  for row in rows.values():
    assert list(row.errors) == sorted(row.errors, reverse=True)
    assert row.errors[-1] >= row.bias * (1 - 1e-9)


def test_every_preset_is_in_a_table():
  build = vars(presets).items()
  named = {k for k, f in build if getattr(f, "__module__", "") == presets.__name__}
  rows = {name.partition("(")[0] for name in bias_table.SINGLE | bias_table.POOLED}
  assert named <= rows


def test_the_table_of_pooled_corrections():
  rows = bias_table.pooled_table(0.3, length=2, size=2, seeds=1)
  assert [row.name for row in rows] == list(bias_table.POOLED)
  plain = next(row for row in rows if row.name == "seq_is()")
  assert plain.bias < 1e-10 and plain.accepted == 1


@pytest.mark.parametrize("correct", [chain(), presets.tis(1.2), presets.kpop(0.05)])
def test_a_centred_estimate_does_not_move_for_a_reward_that_says_nothing(correct):
  share = PROBLEM.probability(PROBLEM.sampler)
  same = np.ones((len(share), 1))
  found = enumerable.updates(PROBLEM, correct, same).mean(PROBLEM, share)
  assert np.abs(found).max() > 0.01
  centred = enumerable.updates(PROBLEM, correct, same, centered=3)
  np.testing.assert_allclose(centred.mean(PROBLEM, share), 0, atol=1e-12)


def test_a_centred_estimate_is_the_covariance_under_the_sampler():
  """Of one token: E_q[A f s] - E_q[A] E_q[f s], with the cap as f."""
  problem = enumerable.random_problem(4, 1, noise=1.0, seed=5)
  p, q = np.exp(problem.learner[0]), np.exp(problem.sampler[0])
  advantages, scores = problem.outcome_advantages, np.eye(4) - p
  weighed = np.minimum(p / q, 1.3)[:, None] * scores
  mean = q @ (advantages[:, None] * weighed) - (q @ advantages) * (q @ weighed)
  each = advantages[:, None] * (weighed - q @ weighed)
  found = enumerable.exact(problem, presets.tis(1.3), centered=4)
  np.testing.assert_allclose(found.bias + found.gradient, mean[None], atol=1e-12)
  np.testing.assert_allclose(
    found.variance, q @ (each**2).sum(1) - (mean**2).sum(), rtol=1e-10
  )


def test_centering_helps_alone_and_adds_nothing_to_token_weights():
  problems = [enumerable.random_problem(3, 7, noise=0.3, seed=s) for s in range(4)]
  bias = lambda correct, centered: np.mean(
    [enumerable.exact(p, correct, centered=centered).relative_bias for p in problems]
  )
  np.testing.assert_allclose(
    [bias(chain(), 0), bias(chain(), 3)], [0.4213, 0.4068], atol=5e-5
  )
  np.testing.assert_allclose(
    [bias(presets.tis(), 0), bias(presets.tis(), 3)], [0.3914, 0.3917], atol=5e-5
  )
  plain = chain(importance("token"))
  for head in (1, 2, 3):
    np.testing.assert_allclose(bias(plain, head), bias(plain, 0), rtol=1e-12)


def test_a_groups_baseline_is_the_samplers():
  """It changes nothing on average where the weights are unbiased, or centred."""
  for correct, centered in ((presets.seq_is(), 0), (chain(), 3)):
    both = [
      enumerable.exact(SMALL, correct, baseline=who).bias
      if not centered
      else enumerable.exact(ONE, correct, baseline=who, centered=3).bias
      for who in ("learner", "sampler")
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-12)
  plain = [
    enumerable.exact(ONE, chain(), baseline=who).bias for who in ("learner", "sampler")
  ]
  moved = plain[1] - plain[0]
  # The mean score under the sampler, q - p, times what the baselines are apart.
  p, q = np.exp(ONE.learner), np.exp(ONE.sampler)
  np.testing.assert_allclose(moved, -((q - p) @ ONE.rewards) * (q - p), atol=1e-12)
  assert np.abs(moved).max() > 0.005


def test_a_rejected_sequence_takes_its_centering_along():
  correct = presets.geometric_mask(1.1, 1 / 1.1)
  ones = np.ones((len(PROBLEM.tokens), 1))
  found = enumerable.updates(PROBLEM, correct, ones, centered=3)
  out = ~found.mask.any(axis=1)
  assert out.any() and not found.coefficient[out].any()
  assert np.abs(found.coefficient[~out]).min(axis=(1, 2)).max() > 0


def test_a_centering_without_a_law_is_refused():
  with pytest.raises(ValueError, match="has no law of single tokens"):
    enumerable.exact(PROBLEM, presets.seq_tis(), centered=3)
  with pytest.raises(ValueError, match="centered=4 is not between 1 and the vocab"):
    enumerable.exact(PROBLEM, chain(), centered=4)
