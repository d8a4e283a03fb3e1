"""What a learner is made of from a peer's configuration does what the peer does."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import compat, losses
from tis_jax.corrections import chain
from tis_jax.numerics.metrics import finalize

_NAMES = ("logp", "old_logp", "sampler_logp", "advantages", "mask", "key")


@pytest.fixture(scope="module")
def batch():
  """Six filled rows of three prompts, with padding and holes of garbage."""
  rng = np.random.default_rng(5)
  shape = (6, 10)
  mask = np.arange(10) < np.array([[10], [9], [5], [2], [10], [1]])
  mask[0, 3:5] = False
  sampler = -3.0 - rng.exponential(1.0, shape)
  old = sampler + rng.normal(0, 0.4, shape)
  logp = old + rng.normal(0, 0.3, shape)
  advantages = rng.normal(size=6)[:, None] + rng.normal(0, 0.1, shape)
  dirty = lambda x: jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
  return {
    "logp": dirty(logp),
    "old_logp": dirty(old),
    "sampler_logp": dirty(sampler),
    "advantages": jnp.asarray(np.where(mask, advantages, 0.0), jnp.float32),
    "mask": jnp.asarray(mask),
    "key": jax.random.key(0),
  }


def _learned(fields, batch):
  """`(loss, metrics)` as a learner makes it of `fields`, a function of logp."""
  group_ids = jnp.repeat(jnp.arange(3), 2)

  def loss(logp):
    bypass = fields["old_logp"] == "sampler"
    old = logp if bypass else batch["old_logp"]
    out = fields["correct"](old, batch["sampler_logp"], batch["mask"])
    given = batch | {"logp": logp, "mask": out.mask}
    if bypass:
      given["old_logp"] = batch["sampler_logp"]
    token_loss, metrics = losses.call_loss(fields["loss"], **given)
    spec = fields["aggregation"]
    counted = out.mask if spec["denominator"] == "accepted" else batch["mask"]
    denominator = losses.denominators(
      counted,
      spec["mode"],
      length=spec["length"],
      group_ids=group_ids if spec["mode"] == "prompt_mean" else None,
    )
    total = losses.aggregate(token_loss * out.weight, out.mask, denominator=denominator)
    return total, metrics | out.metrics

  return loss


def _same(mine, theirs, logp, *, rtol=1e-5):
  """Equal values and gradients; returns the metrics of both."""
  (value, found), gradient = jax.value_and_grad(mine, has_aux=True)(logp)
  (expected, want), slope = jax.value_and_grad(theirs, has_aux=True)(logp)
  np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=rtol, atol=1e-6)
  assert np.abs(np.nan_to_num(slope)).max() > 0
  return finalize(found), want


_VERL_MODES = (
  *("vanilla", "gspo", "sapo", "gpg", "clip_cov", "kl_cov"),
  *("geo_mean", "cispo", "dppo_tv", "dppo_kl", "dro"),
)


def _verl(**options):
  """Options of the correction and the actor, as they are nested in verl."""
  correction = options.pop("rollout_correction", {})
  return {
    "algorithm": {"rollout_correction": correction},
    "actor_rollout_ref": {"actor": {"policy_loss": options}},
  }


@pytest.mark.parametrize("mode", _VERL_MODES)
def test_a_loss_of_verl_is_the_one_it_trains_with(mode, batch):
  options = {"loss_mode": mode, "dro_beta": 0.5, "clip_cov_lb": -9.0}
  config = _verl(**options)
  weigh = {} if mode == "geo_mean" else {"rollout_is": "token"}
  config["algorithm"]["rollout_correction"] = weigh
  fields = compat.update("verl", config)
  weight, mask, _ = compat.verl.correction(weigh)(
    batch["old_logp"], batch["sampler_logp"], batch["mask"]
  )
  peer = compat.verl.policy_loss(options)

  def theirs(logp):
    return peer(
      logp, batch["old_logp"], batch["advantages"], mask, weight, key=batch["key"]
    )

  found, want = _same(_learned(fields, batch), theirs, batch["logp"])
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  "mode",
  [
    *("token-mean", "token-sum", "seq-mean-token-sum"),
    *("seq-mean-token-mean", "seq-mean-token-sum-norm"),
  ],
)
def test_what_verl_rejects_leaves_the_denominator(mode, batch):
  reject = {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.7_1.4"}
  config = _verl(rollout_correction=reject)
  config["actor_rollout_ref"]["actor"]["loss_agg_mode"] = mode
  fields = compat.update("verl", config, response_length=10)
  _, mask, _ = compat.verl.correction(reject)(
    batch["old_logp"], batch["sampler_logp"], batch["mask"]
  )
  assert 0 < mask.sum() < batch["mask"].sum()
  peer = compat.verl.policy_loss({"loss_agg_mode": mode})

  def theirs(logp):
    return peer(logp, batch["old_logp"], batch["advantages"], mask)

  _same(_learned(fields, batch), theirs, batch["logp"])


@pytest.mark.parametrize("kind", ["ppo_clip", "reinforce"])
def test_verls_bypass_needs_no_second_correction(kind, batch):
  bypass = {"bypass_mode": True, "loss_type": kind, "rollout_is": "token"}
  bypass |= {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.5_2.0"}
  config = _verl(rollout_correction=bypass)
  config["actor_rollout_ref"]["actor"]["entropy_coeff"] = 0.0
  fields = compat.update("verl", config)
  assert fields["old_logp"] == "sampler"
  assert fields["correct"].weighs == (kind == "reinforce")
  peer = compat.verl.policy_loss(
    {"loss_mode": "bypass_mode", "rollout_correction": bypass}
  )
  tokens = int(batch["mask"].sum())

  def theirs(logp):
    return peer(
      logp,
      batch["sampler_logp"],
      batch["advantages"],
      batch["mask"],
      batch_num_tokens=tokens,
    )

  _same(_learned(fields, batch), theirs, batch["logp"])


_SKYRL_LOSSES = (
  *("regular", "dual_clip", "gspo", "cispo", "sapo", "rollout_is", "dppo"),
  "importance_sampling",
)


@pytest.mark.parametrize(
  ("kind", "reduction"),
  [
    *((kind, "token_mean") for kind in _SKYRL_LOSSES),
    *(("regular", reduction) for reduction in ("sequence_mean", "prompt_mean")),
  ],
)
def test_a_loss_of_skyrl_is_the_one_it_trains_with(kind, reduction, batch):
  correction = {}
  if kind != "gspo":  # whose mean SkyRL takes before it masks
    correction |= {"token_mask_is_threshold_low": 0.7}
    correction |= {"token_mask_is_threshold_high": 2.0}
  if kind not in ("rollout_is", "dppo"):
    correction |= {"tis_ratio_type": "token", "token_tis_ratio_clip_high": 1.5}
  options = {"policy_loss_type": kind, "loss_reduction": reduction}
  options["off_policy_correction"] = correction
  fields = compat.update("skyrl", {"trainer": {"algorithm": options}})
  divided = compat.skyrl.reduction({"loss_reduction": reduction})(
    batch["advantages"], batch["mask"], prompt_sizes=[2, 2, 2]
  )
  peer = compat.skyrl.policy_loss(options)

  def theirs(logp):
    return peer(logp, batch["old_logp"], divided, batch["mask"], batch["sampler_logp"])

  _same(_learned(fields, batch), theirs, batch["logp"])


@pytest.mark.parametrize("kind", ["ipo", "icepop", "ppo", "cispo", "default"])
def test_a_loss_of_prime_rl_is_the_one_it_trains_with(kind, batch):
  fields = compat.update("prime_rl", {"type": kind})
  peer = compat.prime_rl.policy_loss({"type": kind})
  given = batch["sampler_logp"], batch["advantages"], batch["mask"]
  found, want = _same(
    _learned(fields, batch), lambda logp: peer(logp, *given), batch["logp"]
  )
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


_ESTIMATORS = {
  "verl": (
    *("gae", "grpo", "grpo_passk", "reinforce_plus_plus", "rloo", "opo", "remax"),
    *("reinforce_plus_plus_baseline", "gpg", "gdpo", "optimal_token_baseline"),
    "tir_optimal_token_baseline",
  ),
  "skyrl": ("grpo", "rloo", "maxrl", "reinforce++", "gae"),
}


@pytest.mark.parametrize(
  ("peer", "name"), [(p, n) for p, names in _ESTIMATORS.items() for n in names]
)
def test_an_estimator_sees_the_outcome_on_the_last_token(peer, name, batch):
  key = {"verl": "adv_estimator", "skyrl": "advantage_estimator"}[peer]
  fields = compat.update(peer, {key: name})
  rng = np.random.default_rng(0)
  rewards, mask = jnp.asarray(rng.normal(size=6), jnp.float32), batch["mask"]
  group_ids = jnp.repeat(jnp.arange(3), 2)
  values = jnp.asarray(rng.normal(size=mask.shape), jnp.float32)
  known = {
    "values": values,
    "greedy_rewards": rewards[::-1],
    "logp": batch["old_logp"],
    "sum_squared_probs": jnp.full(mask.shape, 0.3),
    "weight": jnp.full(mask.shape, 1.5),
  }
  given = known | {"rewards": rewards, "group_ids": group_ids, "mask": mask}
  mine = losses.call_loss(fields["advantage"], **given)
  by_token = np.zeros(mask.shape, np.float32)
  by_token[np.arange(6), [9, 8, 4, 1, 9, 0]] = rewards
  theirs = getattr(compat, peer).advantages({key: name})(
    jnp.asarray(by_token),
    mask,
    group_ids,
    values=values,
    reward_baselines=rewards[::-1],
    old_logp=batch["old_logp"],
    sum_pi_squared=known["sum_squared_probs"],
    rollout_is_weights=known["weight"],
  )
  mine = mine if name == "gae" else (mine,)
  for got, want in zip(mine, theirs, strict=False):
    np.testing.assert_array_equal(got, want)


def test_a_section_decides_its_own_and_a_whole_config_everything():
  section = {"rollout_is": "token"}
  dotted = {"algorithm.rollout_correction.rollout_is": "token"}
  of_2025_10 = {"rollout_is": True, "rollout_is_threshold": 2.0}
  for config in (section, dotted, of_2025_10, {}):
    assert set(compat.update("verl", config)) == {"correct"}
  assert set(compat.update("skyrl", {"tis_ratio_type": "token"})) == {"correct"}
  assert set(compat.update("slime", {"use_tis": True})) == {"correct"}
  whole = compat.update("verl", {**dotted, "data": {"train_batch_size": 1024}})
  assert losses.traits(whole["advantage"]).name == "verl gae"  # verl's own default
  assert whole["kl"]["coefficient"] == 0.0 and whole["entropy_coefficient"] == 0.0
  skyrl = compat.update("skyrl", {"advantage_estimator": "rloo"})
  assert skyrl["kl"] == {"coefficient": 0.001, "kind": "k3", "placement": "loss"}


@pytest.mark.parametrize(
  ("peer", "config", "message"),
  [
    ("veryl", {}, "peer"),
    ("verl", {"rollout_iss": "token"}, "did you mean 'rollout_is'"),
    ("verl", {"actor_rollout_ref.actor.clip_ratio_hihg": 1}, "'clip_ratio_high'"),
    ("verl", {"use_kl_loss": True, "use_kl_in_reward": True}, "switch one of"),
    ("verl", _verl(loss_mode="geo_mean", rollout_correction={"rollout_is": "token"})
     , "geometric mean of the weights"),
    ("verl", {"loss_agg_mode": "seq-mean-token-sum-norm"}, "give response_length"),
    ("skyrl", {"loss_reduction": "token_mean_legacy"}, "write 'token_mean'"),
    ("prime_rl", {"type": "ipo", "score_centering": True}, "score_centering"),
  ],
)  # fmt: skip
def test_what_a_learner_cannot_do_is_said(peer, config, message):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError, match=message):
      compat.update(peer, config)


def test_a_missing_log_prob_is_not_shown_to_a_peer(batch):
  config = {"rollout_is": "token", "rollout_is_batch_normalize": True}
  correct = chain(compat.stage("verl", config))
  missing = batch["mask"] & (jnp.arange(10) == 1)[None, :]
  sampler = jnp.where(missing, jnp.nan, batch["sampler_logp"])
  out = correct(batch["old_logp"], sampler, batch["mask"])
  alone = correct(batch["old_logp"], batch["sampler_logp"], batch["mask"] & ~missing)
  np.testing.assert_array_equal(out.weight[missing], 1.0)
  np.testing.assert_array_equal(
    jnp.where(missing, 0.0, out.weight), jnp.where(missing, 0.0, alone.weight)
  )
  assert (out.mask == batch["mask"]).all()


def test_a_stage_of_a_peer_is_a_value(batch):
  config = {"rollout_is": "token", "rollout_is_threshold": 1.5}
  one, two = (compat.stage("verl", dict(config)) for _ in range(2))
  assert one == two and hash(one) == hash(two)
  assert one != compat.stage("verl", {"rollout_is": "token"})
  arrays = batch["old_logp"], batch["sampler_logp"], batch["mask"]
  jitted, plain = jax.jit(chain(one))(*arrays), chain(two)(*arrays)
  np.testing.assert_array_equal(jitted.weight, plain.weight)


def test_a_stage_knows_what_it_does_to_a_batch():
  normalized = {"rollout_is": "token", "rollout_is_batch_normalize": True}
  assert compat.stage("verl", normalized).pools
  assert not compat.stage("verl", {"rollout_is": "token"}).pools
  rejects = {"rollout_rs": "token_k1", "rollout_rs_threshold": 2.0}
  assert not chain(compat.stage("verl", rejects)).weighs
  assert compat.stage("trl", {"off_policy_mask_threshold": 0.1}).needs == (
    "advantages",
  )
  assert compat.stage("trl", {}).needs == ()
