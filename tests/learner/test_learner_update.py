"""The update against a plain re-statement, on meshes, in parts, and on bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import (
  VERSION,
  advantages,
  distributions,
  make_algorithm,
  policy_gradient_step,
  scores,
  token_baseline_advantages,
  truncated_weight,
)

from tis_jax import learner
from tis_jax.logprobs import Sampling
from tis_jax.models import flatten

NO_METRICS = {"correction__metrics": "none"}


def assert_same_params(got, want):
  got, want = flatten(got), flatten(want)
  for name, x in want.items():
    np.testing.assert_allclose(got[name], x, 2e-4, 2e-6, err_msg=name)


def assert_same_metrics(got, want):
  for name in want.keys() & got.keys():
    for a, b in zip(
      jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True
    ):
      np.testing.assert_allclose(a, b, 2e-4, 1e-4, err_msg=name)


def test_one_update_is_the_truncated_policy_gradient(tiny, batch):
  state, metrics = tiny.step(batch)
  params, loss, norm = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, batch
  )
  assert_same_params(state.params, params)
  np.testing.assert_allclose(metrics["loss/total"], loss, 1e-4, 1e-6)
  np.testing.assert_allclose(metrics["optimizer/grad_norm"], norm, 1e-4)
  assert state.step == 1
  assert metrics["update/skipped"] == 0


@pytest.mark.parametrize(
  ("align", "mesh", "settings"),
  [
    ("column", "one", {}),
    ("ordinal", "one", {}),
    ("column", "2x2x2", {"micro_batches": 2}),
  ],
)
def test_an_optimal_token_baseline_is_of_the_policy_before_the_update(
  tiny, batch, align, mesh, settings
):
  """Its probabilities, squared and summed, and its weight: a pass, and no settings."""
  algorithm = make_algorithm(
    advantage__name="optimal_token_baseline",
    advantage__optimal_token_baseline={"align": align},
    **NO_METRICS,
    **settings,
  )
  assert algorithm.corrects_first
  update = learner.make_update(tiny.graph, algorithm, tiny.optimizer, tiny.meshes[mesh])
  dirty = batch._replace(
    rewards=np.where(batch.mask.any(1), batch.rewards, np.nan).astype(np.float32)
  )
  state, metrics = update(tiny.state(mesh), dirty, np.int32(VERSION))
  found = token_baseline_advantages(tiny.graph, tiny.params, batch, align)
  params, loss, _ = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, batch, found
  )
  assert_same_params(jax.device_get(state.params), params)
  np.testing.assert_allclose(metrics["loss/total"], loss, 1e-4, 1e-5)
  want = np.abs(found[batch.mask]).mean()
  np.testing.assert_allclose(metrics["advantage/abs"], want, 1e-4)


def test_gdpo_normalises_each_named_reward_on_its_own(tiny, batch):
  algorithm = make_algorithm(
    advantage__name="gdpo", advantage__gdpo={"weights": (2.0, 0.5)}, **NO_METRICS
  )
  update = learner.make_update(
    tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"]
  )
  other = np.random.default_rng(6).normal(size=32).astype(np.float32)
  named = np.stack([batch.rewards, 100 * other], 1)
  state, metrics = update(
    tiny.state(), batch._replace(named_rewards=named), np.int32(VERSION)
  )
  second = advantages(batch._replace(rewards=named[:, 1]))
  found = 2.0 * advantages(batch) + 0.5 * second
  inside = np.broadcast_to(found[:, None], batch.mask.shape)[batch.mask]
  found = (found - inside.mean()) / inside.std(ddof=1)
  params, loss, _ = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, batch, found[:, None]
  )
  assert_same_params(jax.device_get(state.params), params)
  np.testing.assert_allclose(metrics["loss/total"], loss, 1e-4, 1e-5)


def test_remax_takes_the_greedy_answers_reward_off(tiny, batch):
  update = learner.make_update(
    tiny.graph,
    make_algorithm(advantage__name="remax", **NO_METRICS),
    tiny.optimizer,
    tiny.meshes["one"],
  )
  with pytest.raises(ValueError, match="remax needs greedy_rewards"):
    jax.eval_shape(update, tiny.state(), batch, np.int32(VERSION))
  greedy = np.random.default_rng(5).random(32).astype(np.float32)
  recorded = batch._replace(greedy_rewards=greedy)
  state, metrics = update(tiny.state(), recorded, np.int32(VERSION))
  advantage = np.where(batch.mask.any(1), batch.rewards - greedy, 0.0)
  params, loss, _ = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, batch, advantage[:, None]
  )
  assert_same_params(jax.device_get(state.params), params)
  np.testing.assert_allclose(metrics["loss/total"], loss, 1e-4, 1e-6)
  held = batch.mask.any(1)
  np.testing.assert_allclose(metrics["reward/greedy"], greedy[held].mean(), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mesh", "settings"), [("2x2x2", {}), ("1x4x2", {"micro_batches": 4})]
)
def test_shards_and_micro_batches_only_round(tiny, batch, mesh, settings):
  want = tiny.step(batch)
  got = tiny.step(batch, mesh, **settings)
  assert_same_params(got[0].params, want[0].params)
  assert got[1].keys() == want[1].keys()
  assert_same_metrics(got[1], want[1])


def test_current_log_probs_are_the_recomputed_ones(tiny, batch):
  want = tiny.step(batch)
  got = tiny.step(batch, old_logp="current", micro_batches=2, **NO_METRICS)
  assert_same_params(got[0].params, want[0].params)
  assert_same_metrics(got[1], want[1])


def test_metrics_of_a_known_batch(tiny, batch):
  _, metrics = tiny.step(batch)
  rows = batch.mask.any(1)
  assert metrics["groups/count"] == 8
  np.testing.assert_allclose(metrics["reward/mean"], batch.rewards[rows].mean(), 1e-6)
  np.testing.assert_allclose(metrics["response/length"], batch.mask.sum() / 30, 1e-6)
  np.testing.assert_allclose(
    metrics["response/truncated"], batch.finish_reasons[rows].mean(), 1e-6
  )
  assert metrics["staleness/max"] == 3
  np.testing.assert_allclose(
    metrics["staleness/mean"], 2 + 2 / batch.mask.sum(), rtol=1e-6
  )
  dull = [
    len(set(batch.rewards[rows & (batch.group_ids == group)])) == 1
    for group in set(batch.group_ids[rows])
  ]
  assert 0 < sum(dull) < 8
  np.testing.assert_allclose(metrics["groups/without_signal"], np.mean(dull), 1e-6)
  logp, entropy = scores(tiny.graph, tiny.params, batch)
  np.testing.assert_allclose(
    metrics["policy/entropy"], np.asarray(entropy)[batch.mask].mean(), 1e-5
  )
  log_ratio = np.where(batch.mask, np.asarray(logp) - batch.sampler_logp, 0).sum(1)
  weight = np.where(rows, np.exp(log_ratio), 0)
  np.testing.assert_allclose(
    metrics["reward/learner_normalized"],
    (weight * batch.rewards).sum() / weight.sum(),
    1e-4,
  )
  histogram = metrics["weight_histogram"]
  assert histogram["raw"].sum() == histogram["applied"].sum() == batch.mask.sum()
  edges = histogram["edges"]
  assert histogram["raw"][edges[:-1] > 2.2].sum() > 0
  assert histogram["applied"][edges[:-1] > 2.2].sum() == 0


def test_what_lies_under_the_masks_is_nothing(tiny, batch):
  want = tiny.step(batch)
  off, empty = ~batch.mask, ~batch.mask.any(1)
  padding = off & (np.cumsum(batch.mask[:, ::-1], 1)[:, ::-1] == 0)
  dirty = batch._replace(
    prompts=np.where(batch.prompt_mask, batch.prompts, 19),
    tokens=np.where(padding, 19, batch.tokens),
    sampler_logp=np.where(off, np.nan, batch.sampler_logp),
    versions=np.where(off, -999, batch.versions),
    rewards=np.where(empty, np.nan, batch.rewards),
    group_ids=np.where(empty, batch.group_ids[0], batch.group_ids),
  )
  got = tiny.step(dirty)
  assert_same_params(got[0].params, want[0].params)
  assert_same_metrics(got[1], want[1])


def test_a_missing_sampler_log_prob_has_weight_one(tiny, batch):
  row, column = np.argwhere(batch.mask)[20]
  sampler_logp = batch.sampler_logp.copy()
  sampler_logp[row, column] = np.nan
  _, metrics = tiny.step(batch._replace(sampler_logp=sampler_logp))
  logp, _ = scores(tiny.graph, tiny.params, batch)
  sampler_logp[row, column] = logp[row, column]
  _, want = tiny.step(batch._replace(sampler_logp=sampler_logp))
  np.testing.assert_allclose(metrics["loss/total"], want["loss/total"], 1e-4, 1e-6)
  np.testing.assert_allclose(metrics["tokens/missing"], 1 / batch.mask.sum(), 1e-5)


def test_mini_batches_are_updates_one_after_the_other(tiny, batch):
  settings = {"epochs": 2, "mini_batches": 2, "shuffle": True} | NO_METRICS
  state, metrics = tiny.step(batch, **settings)
  counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
  assert set(map(int, counts)) == {4}
  assert state.step == 1
  # The second epoch has drifted from old_logp; the first update has not.
  assert metrics["policy/ratio_max"] > 1.01
  assert metrics["update/skipped"] == 0
  again, _ = tiny.step(batch, **settings)
  jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_the_terms_of_the_loss(tiny, batch):
  reference = jax.tree.map(lambda x: 0.9 * x, tiny.params)
  settings = {
    "kl__coefficient": 0.3,
    "entropy_coefficient": 0.05,
    "aggregation__mode": "sequence_mean",
    "overlong__buffer": 3,
    "correction__stages": ("reject", "truncate"),
    "correction__reject__high": 2.0,
    "correction__reject__level": "token",
    "aggregation__denominator": "accepted",
  } | NO_METRICS
  _, metrics = tiny.step(batch, reference=reference, **settings)
  logp, entropy = (np.float64(x) for x in scores(tiny.graph, tiny.params, batch))
  ref_logp = np.float64(scores(tiny.graph, reference, batch)[0])
  over = np.clip((batch.mask.sum(1) - 3) / 3, 0, 1)
  scale = advantages(batch._replace(rewards=batch.rewards - over))[:, None]
  weight = truncated_weight(logp, batch)
  ratio = np.exp(np.where(batch.mask, logp - batch.sampler_logp, 0))
  kept = batch.mask & (ratio <= 2.0) & (ratio >= 0.5)
  rows = kept.any(1)
  assert 0 < kept.sum() < batch.mask.sum()

  def mean(x):
    return np.mean([x[i, kept[i]].mean() for i in np.flatnonzero(rows)])

  want = {
    "policy": mean(-scale * weight),
    "kl": 0.3 * mean(0.5 * (logp - ref_logp) ** 2),
    "entropy": -0.05 * mean(entropy),
  }
  want["total"] = sum(want.values())
  for name, value in want.items():
    np.testing.assert_allclose(metrics[f"loss/{name}"], value, 2e-4, 1e-6, err_msg=name)


@pytest.mark.slow
def test_bypass_takes_the_ratio_to_the_sampler_into_the_loss(tiny, batch):
  settings = {"old_logp": "sampler", "correction__stages": ("reject",)}
  settings |= {"correction__reject__high": 3.0, "correction__reject__level": "token"}
  _, metrics = tiny.step(batch, micro_batches=2, **settings, **NO_METRICS)
  logp, _ = scores(tiny.graph, tiny.params, batch)
  ratio = np.exp(np.where(batch.mask, np.asarray(logp) - batch.sampler_logp, 0.0))
  kept = batch.mask & (ratio <= 3.0) & (ratio >= 1 / 3)
  scale = advantages(batch)[:, None] + 0 * ratio
  token_loss = np.maximum(-scale * ratio, -scale * np.clip(ratio, 0.8, 1.28))
  token_loss = np.where(scale < 0, np.minimum(token_loss, -3 * scale), token_loss)
  want = token_loss[kept].sum() / batch.mask.sum()
  np.testing.assert_allclose(metrics["loss/total"], want, 1e-4, 1e-6)
  assert 0 < kept.sum() < batch.mask.sum()


@pytest.mark.slow
def test_an_unchanged_policy_has_ratio_one_under_top_p(tiny, batch):
  """Processed log-probs of a recorded kept set; one token's set did not fit."""
  rng = np.random.default_rng(2)
  rows = distributions(tiny.graph, tiny.params, batch)
  kept = rng.integers(3, 20, (*batch.tokens.shape, 4))
  kept = np.where(kept == batch.tokens[..., None], -1, kept)
  kept = np.concatenate([batch.tokens[..., None], kept], -1).astype(np.int32)
  inside = (kept[..., None, :] == np.arange(20)[:, None]).any(-1)
  mass = np.where(inside, np.exp(rows), 0).sum(-1)
  logp, _ = scores(tiny.graph, tiny.params, batch)
  assert (mass < 0.9).all()
  row, column = np.argwhere(batch.mask)[7]
  kept[row, column] = -1
  nucleus = batch._replace(sampler_logp=logp - np.log(mass), kept_tokens=kept)

  sampling = Sampling(top_p=0.8, logprobs="processed")
  algorithm = make_algorithm(old_logp="current")
  update = learner.make_update(
    tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"], sampling=sampling
  )
  _, metrics = update(tiny.state(), nucleus, np.int32(VERSION))
  raw = np.asarray(metrics["weight_histogram"]["raw"])
  # The one bin that holds ratio 1; the token that cannot be compared is in none.
  assert raw[len(raw) // 2] == raw.sum() == batch.mask.sum() - 1
  np.testing.assert_allclose(
    metrics["reward/learner_normalized"], metrics["reward/mean"], 1e-5
  )


def test_the_state_is_donated_and_shapes_compile_once(tiny, batch):
  update, state = tiny.update("2x2x2"), tiny.state("2x2x2")
  for version in range(3):
    before = state
    rewards = batch.rewards * version
    state, _ = update(state, batch._replace(rewards=rewards), np.int32(version))
    arrays = jax.tree.leaves((before.params, before.opt_state))
    assert all(x.is_deleted() for x in arrays)
  assert state.step == 3
  query = state.params["layers"]["attention"]["query"][...]
  want = jax.NamedSharding(tiny.meshes["2x2x2"], jax.P(None, "fsdp", "tensor"))
  assert query.sharding.is_equivalent_to(want, query.ndim)


def test_a_nan_leaves_the_state_as_it_was(tiny, batch):
  rewards = batch.rewards.copy()
  rewards[3] = np.nan
  state, metrics = tiny.step(batch._replace(rewards=rewards))
  fresh = jax.device_get(tiny.state())
  assert metrics["update/skipped"] == 1
  assert not np.isfinite(metrics["loss/total"])
  jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
  assert state.step == 0
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(fresh.key)
  )


def test_what_was_dispatched_behind_a_nan_changes_nothing(tiny, batch):
  rewards = batch.rewards.copy()
  rewards[3] = np.nan
  update, fresh = tiny.update(), jax.device_get(tiny.state())
  state, _ = update(tiny.state(), batch._replace(rewards=rewards), np.int32(VERSION))
  state, metrics = update(state, batch, np.int32(VERSION))
  assert metrics["update/skipped"] == 1
  assert state.step == 0
  jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)
  healed = state._replace(healthy=jnp.ones_like(state.healthy))
  state, metrics = update(healed, batch, np.int32(VERSION))
  assert metrics["update/skipped"] == 0
  assert_same_params(state.params, tiny.step(batch)[0].params)


def test_rows_must_divide(tiny, batch):
  short = learner.take_rows(batch, np.arange(12))
  with pytest.raises(ValueError, match="12 rows does not divide by 8: 4 devices"):
    tiny.update("2x2x2", mini_batches=2)(tiny.state("2x2x2"), short, np.int32(0))


def test_the_step_lowers_for_tpu_and_cuda(tiny, batch):
  mesh = tiny.meshes["2x2x2"]
  update = tiny.update("2x2x2", micro_batches=2, epochs=2)
  state = learner.abstract_state(tiny.graph, tiny.optimizer, mesh)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  version = jax.ShapeDtypeStruct((), jnp.int32)
  # A key is an extended dtype, which export cannot serialise but can lower.
  exported = jax.export.export(update, platforms=("tpu", "cuda"))(
    state, shapes, version
  )
  assert exported.platforms == ("tpu", "cuda")
  assert exported.nr_devices == 8
  assert len(re.findall("stablehlo.while", exported.mlir_module())) >= 2


def test_the_learner_counts_staleness_from_the_version_it_is_given(tiny, batch):
  fresh = batch._replace(versions=np.full_like(batch.versions, VERSION))
  assert tiny.step(fresh)[1]["staleness/max"] == 0
