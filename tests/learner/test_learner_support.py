"""Truncated sampling: exact ratios where the kept set is known, no ratio elsewhere."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from learner_oracle import VERSION, advantages, distributions, make_algorithm

from tis_jax import learner
from tis_jax.engines import NativeEngine
from tis_jax.sampler import SamplerSettings

SAMPLER = SamplerSettings(
  precision="float32", temperature=0.9, top_p=0.8, max_new_tokens=6
)
PROMPTS, GROUP = 8, 4


@pytest.fixture(scope="module")
def params(tiny):
  """Of a policy with something to drop: sharper than the tiny one."""
  return jax.tree.map(lambda x: 2 * x, tiny.params)


@pytest.fixture(scope="module")
def newer(params):
  return jax.tree.map(lambda x: 1.1 * x, params)


@pytest.fixture(scope="module")
def sampled(tiny, params):
  """`sampled(kept_tokens=...)`: a batch of the tiny policy's own answers."""

  @functools.cache
  def sampled(**changes):
    settings = dataclasses.replace(SAMPLER, **changes)
    engine = NativeEngine(
      tiny.graph,
      settings.sampling,
      max_new_tokens=settings.max_new_tokens,
      eos_ids=(1,),
      pad_id=0,
      kept_width=settings.kept_width(20),
      precision=settings.precision,
    )
    engine.update(params, version=VERSION)
    rng = np.random.default_rng(3)
    prompts = rng.integers(2, 20, (PROMPTS, 4)).astype(np.int32)
    prompt_mask = np.arange(4) >= rng.integers(0, 3, (PROMPTS, 1))
    out = engine.generate(prompts, prompt_mask, samples=GROUP, key=jax.random.key(5))
    return learner.Batch(
      prompts=np.repeat(prompts, GROUP, axis=0),
      prompt_mask=np.repeat(prompt_mask, GROUP, axis=0),
      rewards=rng.integers(0, 2, PROMPTS * GROUP).astype(np.float32),
      group_ids=np.repeat(np.arange(PROMPTS, dtype=np.int32), GROUP),
      **{n: x for n, x in out._asdict().items() if n in learner.Batch._fields},
    )

  return sampled


@pytest.fixture(scope="module")
def step(tiny, params):
  """`step(batch, newer, inexact=...)`: one update, `(state, metrics)`."""

  @functools.cache
  def compiled(**settings):
    algorithm = dataclasses.replace(make_algorithm(**settings), temperature=0.9)
    return learner.make_update(
      tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"],
      sampling=SAMPLER.sampling,
    )  # fmt: skip

  def step(batch, learner_params=params, **settings):
    state = learner.init_state(
      learner_params, tiny.optimizer, jax.random.key(1), tiny.meshes["one"]
    )
    return jax.device_get(compiled(**settings)(state, batch, np.int32(VERSION)))

  return step


def laws(tiny, params, batch):
  """`[B, T]` float64 log-probs renormalised over the recorded sets, and over all."""
  rows = np.float64(distributions(tiny.graph, params, batch)) / 0.9
  weights = np.exp(rows - rows.max(-1, keepdims=True))
  ids = np.arange(20)[:, None]
  inside = (batch.kept_tokens[..., None, :] == ids).any(-1)
  drawn = np.take_along_axis(weights, batch.tokens[..., None], -1)[..., 0]
  kept = np.where(inside.any(-1), (weights * inside).sum(-1), np.nan)
  return np.log(drawn / kept), np.log(drawn / weights.sum(-1))


@pytest.mark.slow
@pytest.mark.parametrize("old_logp", ["recompute", "current"])
def test_rollouts_of_the_same_params_under_top_p_have_ratio_one(
  sampled, step, old_logp
):
  batch = sampled()
  mask = batch.mask
  assert batch.kept_tokens.shape == (*mask.shape, 20)
  assert (batch.kept_mass[mask] < 0.99).mean() > 0.9
  _, metrics = step(batch, old_logp=old_logp)
  for name in ("weight/raw_max", "weight/raw_min"):
    np.testing.assert_allclose(metrics[name], 1.0, atol=2e-5)
  assert metrics["support/inexact"] == metrics["tokens/missing"] == 0
  np.testing.assert_allclose(
    metrics["support/kept_mass"], batch.kept_mass[mask].mean(), rtol=1e-6
  )


@pytest.mark.slow
def test_another_policy_has_the_ratio_of_the_renormalised_laws(
  tiny, sampled, step, params, newer
):
  batch = sampled()
  (new, new_raw), (old, old_raw) = (laws(tiny, x, batch) for x in (newer, params))
  _, metrics = step(batch, newer)
  want = (new - old)[batch.mask]
  np.testing.assert_allclose(-metrics["mismatch/k1"], want.mean(), 1e-4, 1e-5)
  np.testing.assert_allclose(metrics["mismatch/log_ratio_max"], want.max(), 1e-3)
  # Which the ratio over all tokens is not.
  assert abs((new_raw - old_raw)[batch.mask].mean() - want.mean()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings", [{}, {"old_logp": "current", "micro_batches": 2}], ids=str
)
def test_tokens_whose_set_did_not_fit_are_left_out_and_counted(
  tiny, sampled, step, params, newer, settings
):
  batch = sampled(kept_tokens=9)
  mask = batch.mask
  fits = (batch.kept_tokens >= 0).any(-1)
  share = (~fits)[mask].mean()
  assert 0.1 < share < 0.9
  state, metrics = step(batch, newer, **settings)
  for name in ("support/inexact", "tokens/missing", "rejected/tokens"):
    np.testing.assert_allclose(metrics[name], share, 1e-5, err_msg=name)
  np.testing.assert_allclose(metrics["tokens/count"], mask.sum())
  (new, _), (old, _) = (laws(tiny, x, batch) for x in (newer, params))
  trains = mask & fits
  ratio = np.exp(np.where(trains, new - old, 0))
  np.testing.assert_allclose(
    metrics["weight/mean"], np.minimum(ratio, 2)[trains].mean(), 1e-4
  )
  # They count in the denominator, as any rejected token does.
  loss = (
    -(advantages(batch)[:, None] * np.minimum(ratio, 2) * trains).sum() / mask.sum()
  )
  np.testing.assert_allclose(metrics["loss/policy"], loss, 2e-4, 1e-6)
  other = np.where(fits, batch.sampler_logp, -3.0).astype(np.float32)
  again, _ = step(batch._replace(sampler_logp=other), newer, **settings)
  jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_a_missing_log_prob_of_a_known_set_still_has_weight_one(sampled, step):
  batch = sampled()
  sampler_logp = batch.sampler_logp.copy()
  sampler_logp[tuple(np.argwhere(batch.mask)[5])] = np.nan
  _, metrics = step(batch._replace(sampler_logp=sampler_logp))
  assert metrics["support/inexact"] == metrics["rejected/tokens"] == 0
  np.testing.assert_allclose(metrics["tokens/missing"], 1 / batch.mask.sum(), 1e-5)


@pytest.mark.slow
def test_approximate_ratios_train_when_they_are_asked_for(
  tiny, sampled, step, params, newer
):
  batch = sampled(kept_tokens=9)
  fits = (batch.kept_tokens >= 0).any(-1)
  _, metrics = step(batch, newer, inexact="train")
  share = (~fits)[batch.mask].mean()
  np.testing.assert_allclose(metrics["support/inexact"], share, 1e-5)
  assert metrics["tokens/missing"] == metrics["rejected/tokens"] == 0
  (new, new_raw), (old, old_raw) = (laws(tiny, x, batch) for x in (newer, params))
  want = np.where(fits, new - old, new_raw - old_raw)[batch.mask]
  np.testing.assert_allclose(-metrics["mismatch/k1"], want.mean(), 1e-4, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mass", [True, False])
def test_a_record_without_sets_is_refused_unless_approximate_ratios_may_train(
  sampled, step, mass
):
  batch = sampled(kept_tokens=0)
  if not mass:
    batch = batch._replace(kept_mass=None)
  with pytest.raises(ValueError, match=r"top_p=0.8 dropped.*inexact='train'"):
    step(batch)
  _, metrics = step(batch, inexact="train")
  assert metrics["support/inexact"] == 1
  assert ("support/kept_mass" in metrics) == mass


def test_sampling_from_all_tokens_says_nothing_of_a_support(tiny, batch):
  _, metrics = tiny.step(batch)
  assert not [name for name in metrics if name.startswith("support/")]


def test_a_comparable_batch_is_what_the_learner_subtracts(tiny, sampled, params):
  """What a run keeps for notebooks: both sides renormalised, or NaN."""
  recorded = sampled(kept_tokens=9)
  batch, exact = learner.comparable_batch(SAMPLER.sampling, recorded)
  score = learner.make_score(tiny.graph, tiny.meshes["one"], temperature=0.9)
  logp = np.asarray(score(params, batch).logp)
  gap = logp - np.asarray(batch.sampler_logp)
  mask, exact = recorded.mask, np.asarray(exact)
  np.testing.assert_allclose(gap[mask & exact], 0.0, atol=2e-5)
  assert np.isnan(gap[mask & ~exact]).all() and (mask & ~exact).any()
