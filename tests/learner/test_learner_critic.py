"""A critic beside the policy: its update restated, sharded, guarded and resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from learner_oracle import (
  VERSION,
  compact,
  make_algorithm,
  policy_gradient_step,
  scores,
)

from tis_jax import learner
from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.models import flatten

SETTINGS = {
  "advantage__name": "gae",
  "advantage__gae": {"discount": 0.9, "trace": 0.8, "whitened": True},
  "critic__clip": 0.1,
  "correction__metrics": "none",
}
# Both a clipped and a large gradient, with Adam's epsilon above rounding.
OPTIMIZER = learner.make_optimizer(
  learner.AdamW(
    0.02, warmup_steps=0, weight_decay=0.1, clip_norm=0.3, epsilon=1e-3, b1=0.8
  ),
  updates=100,
)


@pytest.fixture(scope="module")
def update(tiny):
  """`update(mesh, **settings)`, compiled once each."""

  @functools.cache
  def make(mesh="one", **settings):
    return learner.make_update(
      tiny.graph,
      make_algorithm(**SETTINGS | settings),
      tiny.optimizer,
      tiny.meshes[mesh],
      critic_optimizer=OPTIMIZER,
    )

  return make


@pytest.fixture(scope="module")
def state(tiny):
  """A fresh state whose critic has something to say already."""
  rng = np.random.default_rng(3)
  weight = rng.normal(0, 0.3, 16).astype(np.float32)

  def make(mesh="one"):
    fresh = learner.init_state(
      tiny.params,
      tiny.optimizer,
      jax.random.key(1),
      tiny.meshes[mesh],
      critic_optimizer=OPTIMIZER,
    )
    head = fresh.critic.params["head"]
    place = head["weight"].get_value().sharding
    head["weight"].set_value(jax.device_put(weight, place))
    return fresh

  return make


def critic_of(tiny, state):
  """The critic as the restatement takes it."""
  head = jax.device_get(state.critic.params["head"])
  return {"decoder": tiny.params, "head": {x: head[x].get_value() for x in head}}


def values_of(tiny, critic, batch):
  """`[B, T]` by the decoder and a product, without left padding. Differentiable."""
  tokens, starts = compact(batch)
  hidden, _ = nnx.merge(tiny.graph, critic["decoder"])(tokens)
  slot = starts[:, None] - 1 + np.arange(batch.tokens.shape[1])[None]
  hidden = hidden[np.arange(len(slot))[:, None], np.maximum(slot, 0)]
  return hidden @ critic["head"]["weight"] + critic["head"]["bias"]


def loop_gae(values, batch, discount, trace):
  """`(advantages, returns)` from the last token of each row to its first."""
  advantages = np.zeros(values.shape)
  for i in range(len(values)):
    following = carried = 0.0
    reward = batch.rewards[i]
    for t in np.flatnonzero(batch.mask[i])[::-1]:
      carried = reward + discount * (following + trace * carried) - values[i, t]
      advantages[i, t], following, reward = carried, values[i, t], 0.0
  return advantages, np.where(batch.mask, advantages + values, 0.0)


@pytest.mark.slow
def test_one_update_is_gae_and_the_clipped_value_loss(tiny, batch, update, state):
  critic = critic_of(tiny, state())
  after, metrics = jax.device_get(update()(state(), batch, np.int32(VERSION)))
  old = np.asarray(jax.jit(lambda x: values_of(tiny, x, batch))(critic), np.float64)
  advantages, returns = loop_gae(old, batch, 0.9, 0.8)
  inside = advantages[batch.mask]
  found = np.where(batch.mask, (advantages - inside.mean()) / inside.std(ddof=1), 0.0)
  count = batch.mask.sum()

  # The critic has not moved yet: nothing is clipped, and the loss is half the error.
  def loss(critic):
    error = values_of(tiny, critic, batch) - jnp.float32(returns)
    return jnp.where(batch.mask, error**2, 0.0).sum() / (2 * count)

  value, gradients = jax.jit(jax.value_and_grad(loss))(critic)
  updates, _ = OPTIMIZER.update(gradients, OPTIMIZER.init(critic), critic)
  want = optax.apply_updates(critic, updates)
  got = flatten(after.critic.params)
  for name, x in flatten(want["decoder"]).items():
    np.testing.assert_allclose(got[f"decoder/{name}"], x, 2e-4, 2e-6, err_msg=name)
  for name, x in want["head"].items():
    np.testing.assert_allclose(got[f"head/{name}"], x, 2e-4, 2e-6, err_msg=name)
  np.testing.assert_allclose(metrics["loss/value"], value, 1e-4)
  norm = optax.global_norm(gradients)
  np.testing.assert_allclose(metrics["value/grad_norm"], norm, 1e-4)
  np.testing.assert_allclose(metrics["value/error_squared"], 2 * value, 1e-4)
  np.testing.assert_allclose(metrics["value/mean"], old[batch.mask].mean(), 1e-4)
  spread = (returns - old)[batch.mask].var() / returns[batch.mask].var()
  np.testing.assert_allclose(metrics["value/explained"], 1 - spread, 1e-4, 1e-5)

  params, total, norm = policy_gradient_step(
    tiny.graph, tiny.params, tiny.optimizer, batch, found
  )
  for name, x in flatten(params).items():
    got = flatten(after.params)[name]
    np.testing.assert_allclose(got, x, 2e-4, 2e-6, err_msg=name)
  np.testing.assert_allclose(metrics["loss/total"], total, 1e-4, 1e-5)
  np.testing.assert_allclose(metrics["optimizer/grad_norm"], norm, 1e-4)


@pytest.mark.slow
def test_shards_and_micro_batches_only_round(batch, update, state):
  want, want_metrics = jax.device_get(update()(state(), batch, np.int32(VERSION)))
  sharded = update("2x2x2", micro_batches=2)
  got, metrics = jax.device_get(sharded(state("2x2x2"), batch, np.int32(VERSION)))
  for name, x in flatten(want.critic.params).items():
    np.testing.assert_allclose(
      flatten(got.critic.params)[name], x, 2e-4, 2e-6, err_msg=name
    )
  for name in want_metrics.keys() - {"weight_histogram"}:
    np.testing.assert_allclose(
      metrics[name], want_metrics[name], 2e-4, 1e-4, err_msg=name
    )


def test_a_critic_lies_where_the_policy_does(tiny, state):
  placed = state("2x2x2").critic
  query = placed.params["decoder"]["layers"]["attention"]["query"][...]
  want = jax.NamedSharding(tiny.meshes["2x2x2"], jax.P(None, "fsdp", "tensor"))
  assert query.sharding.is_equivalent_to(want, query.ndim)
  moments = [x for x in jax.tree.leaves(placed.opt_state) if x.shape == query.shape]
  assert moments and all(x.sharding == query.sharding for x in moments)


@pytest.mark.slow
def test_only_the_rows_of_the_baseline_train_the_critic(tiny, batch, update, state):
  rejecting = update(
    baseline="accepted",
    correction__stages=("reject",),
    correction__reject__high=2.0,
    correction__reject__level="sequence",
  )
  _, metrics = rejecting(state(), batch, np.int32(VERSION))
  logp, _ = scores(tiny.graph, tiny.params, batch)
  log_ratio = np.where(batch.mask, np.asarray(logp) - batch.sampler_logp, 0).sum(1)
  accepted = batch.mask & (np.abs(log_ratio) <= np.log(2.0))[:, None]
  assert 0 < accepted.sum() < batch.mask.sum()
  values = np.asarray(values_of(tiny, critic_of(tiny, state()), batch), np.float64)
  returns = loop_gae(values, batch._replace(mask=accepted), 0.9, 0.8)[1]
  error = (values - returns)[accepted]
  np.testing.assert_allclose(metrics["value/mean"], values[accepted].mean(), 1e-4)
  np.testing.assert_allclose(metrics["loss/value"], (error**2).mean() / 2, 1e-4)


def test_what_is_not_finite_in_the_critic_stops_the_policy_too(batch, update, state):
  broken = state()
  head = broken.critic.params["head"]
  head["bias"].set_value(jnp.full_like(head["bias"].get_value(), jnp.nan))
  fresh = jax.device_get(state())
  after, metrics = update()(broken, batch, np.int32(VERSION))
  assert metrics["update/skipped"] == 1
  assert not after.healthy
  jax.tree.map(np.testing.assert_array_equal, after.params, fresh.params)
  jax.tree.map(
    np.testing.assert_array_equal, after.critic.opt_state, fresh.critic.opt_state
  )


def test_a_resumed_critic_is_the_uninterrupted_one_bit_for_bit(
  tiny, batch, update, state, tmp_path
):
  def run(state, steps):
    for step in steps:
      rewards = np.roll(batch.rewards, step)
      state, _ = update()(state, batch._replace(rewards=rewards), np.int32(VERSION))
    return state

  halfway = run(state(), range(2))
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(halfway, {})
    want = run(halfway, range(2, 4))
  like = learner.abstract_state(
    tiny.graph, tiny.optimizer, tiny.meshes["one"], critic_optimizer=OPTIMIZER
  )
  with Checkpoints(tmp_path, {}) as checkpoints:
    restored, _ = checkpoints.restore(like)
  plain = lambda state: jax.device_get(
    state._replace(key=jax.random.key_data(state.key))
  )
  got = run(restored, range(2, 4))
  jax.tree.map(np.testing.assert_array_equal, plain(got), plain(want))
  assert got.critic.params["head"]["bias"][...] != 0
  without = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["one"])
  with (
    Checkpoints(tmp_path, {}) as checkpoints,
    pytest.raises(ValueError, match=r"critic/.* is only there"),
  ):
    checkpoints.restore(without)


def test_a_critic_and_its_optimizer_come_together(tiny):
  make = functools.partial(
    learner.make_update, tiny.graph, optimizer=tiny.optimizer, mesh=tiny.meshes["one"]
  )
  with pytest.raises(ValueError, match="gae takes the values of a critic: give"):
    make(algorithm=make_algorithm(**SETTINGS))
  with pytest.raises(ValueError, match="grpo takes no values"):
    make(algorithm=make_algorithm(), critic_optimizer=OPTIMIZER)
