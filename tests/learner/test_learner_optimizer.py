"""Optimizer, mesh and state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import learner


def test_the_schedule_warms_up_and_comes_down():
  rate = learner.learning_rate(learner.AdamW(2.0, 4, "cosine"), updates=8)
  got = [float(rate(i)) for i in range(9)]
  want = [0.5, 1.0, 1.5, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0]
  np.testing.assert_allclose(got, want, atol=1e-6)
  constant = learner.learning_rate(learner.AdamW(0.1, 0), updates=3)
  assert float(constant(100)) == pytest.approx(0.1)
  with pytest.raises(ValueError, match="schedule must be one of"):
    learner.AdamW(1.0, schedule="cosin")
  with pytest.raises(ValueError, match=r"not in 0\.\.3"):
    learner.learning_rate(learner.AdamW(1.0, 4), updates=3)


def optimizer_of(*args, **settings):
  settings = {"warmup_steps": 0} | settings
  return learner.make_optimizer(learner.AdamW(*args, **settings), updates=2)


def test_only_matrices_decay(tiny):
  optimizer = optimizer_of(1.0, weight_decay=0.5, clip_norm=None)
  params = jax.tree.map(jnp.ones_like, tiny.params)
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(nothing, optimizer.init(params), params)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    want = 0.0 if "norm" in jax.tree_util.keystr(path) else -0.5
    np.testing.assert_array_equal(update, want, err_msg=str(path))


def test_gradients_are_clipped_by_their_common_norm():
  optimizer = optimizer_of(1.0, clip_norm=1.0, b1=0.0, epsilon=1e3)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
  gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  # With so large an epsilon Adam is gradient descent at a rate of 1e-3.
  np.testing.assert_allclose(updates["a"], [-0.6e-3, 0.0], rtol=1e-2)
  np.testing.assert_allclose(updates["b"], [-0.8e-3], rtol=1e-2)
  with pytest.raises(ValueError, match="clip_norm must be above 0"):
    learner.AdamW(clip_norm=-1.0)


def test_the_schedule_is_the_optimizers():
  optimizer = optimizer_of(0.5, schedule="linear", clip_norm=None)
  params, gradients = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
  state = optimizer.init(params)
  rates = []
  for _ in range(2):
    update, state = optimizer.update(gradients, state, params)
    rates.append(float(update["w"][0]))
  np.testing.assert_allclose(rates, [-0.5, -0.25], rtol=1e-4)


def test_a_mesh_takes_what_is_left():
  assert dict(learner.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    learner.make_mesh(fsdp=3)
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    learner.make_mesh(2, 2, 1)
  with pytest.raises(ValueError, match="only one mesh axis"):
    learner.make_mesh(-1, -1)


def test_a_state_is_split_over_the_mesh_and_owns_its_buffers(tiny):
  state = tiny.state("2x2x2")
  like = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["2x2x2"])
  for x, want in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
    assert x.sharding == want.sharding and x.shape == want.shape
  embedding = state.params["embedding"][...]
  assert embedding.addressable_shards[0].data.shape == (10, 8)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (20, 16)]
  assert len(moments) == 2
  assert all(x.sharding == embedding.sharding for x in moments)
  jax.tree.map(lambda x: x.delete(), state.params)
  assert not any(x.is_deleted() for x in jax.tree.leaves(tiny.params))


def test_scores_do_not_depend_on_the_mesh(tiny, batch):
  want = learner.make_score(tiny.graph, tiny.meshes["one"])(tiny.params, batch)
  params = tiny.state("1x4x2").params
  got = learner.make_score(tiny.graph, tiny.meshes["1x4x2"])(params, batch)
  np.testing.assert_allclose(got.logp, want.logp, 1e-4, 1e-5)
  np.testing.assert_allclose(got.entropy, want.entropy, 1e-4, 1e-5)
