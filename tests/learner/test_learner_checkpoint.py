"""Checkpoints: resumed runs, commitments, and checkpoints of something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import VERSION

from tis_jax import learner
from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.models import decoder_graph
from tis_jax.models.params import config_of

IDENTITY = {"run": "a", "model": {"layers": 2, "widths": (16, 32)}}


def plain(state):
  return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def run(tiny, batch, state, steps):
  for step in steps:
    rewards = np.roll(batch.rewards, step)
    state, _ = tiny.update()(state, batch._replace(rewards=rewards), np.int32(VERSION))
  return state


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny, batch, tmp_path):
  state = run(tiny, batch, tiny.state(), range(2))
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    assert checkpoints.committed is None
    assert checkpoints.restore(state) is None
    info = {"cursor": {"sampler-0": 12}, "version": 3, "data": 640}
    checkpoints.save(state, info)
    # Donates the buffers that are being saved.
    want = run(tiny, batch, state, range(2, 4))
  like = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["one"])
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    assert checkpoints.committed == info
    restored, found = checkpoints.restore(like)
  assert found == info
  assert restored.step == 2
  jax.tree.map(lambda x, y: _same_place(x, y), restored, like)
  got = run(tiny, batch, restored, range(2, 4))
  jax.tree.map(np.testing.assert_array_equal, plain(got), plain(want))


def _same_place(x, like):
  assert x.sharding == like.sharding and x.dtype == like.dtype


def test_a_state_moves_to_another_mesh(tiny, tmp_path):
  state = tiny.state()
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    checkpoints.save(state, {})
    like = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["2x2x2"])
    restored, _ = checkpoints.restore(like)
  jax.tree.map(_same_place, restored, like)
  jax.tree.map(np.testing.assert_array_equal, plain(restored), plain(state))


def test_only_the_newest_are_kept_and_a_step_is_saved_once(tiny, tmp_path):
  state = tiny.state()
  with Checkpoints(tmp_path, IDENTITY, keep=2) as checkpoints:
    for step in (1, 2, 3, 3):
      state = state._replace(step=jnp.array(step))
      checkpoints.save(state, {"step": step})
    checkpoints.wait()
    assert checkpoints.committed == {"step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_what_was_not_committed_does_not_count(tiny, tmp_path):
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    checkpoints.save(tiny.state()._replace(step=jnp.array(4)), {"good": True})
  # What a process that was killed while saving leaves behind.
  (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    state, info = checkpoints.restore(tiny.state())
  assert state.step == 4
  assert info == {"good": True}


def test_checkpoints_of_something_else_are_refused(tiny, tmp_path):
  state = tiny.state()
  with Checkpoints(tmp_path, IDENTITY) as checkpoints:
    checkpoints.save(state, {})
  with (
    Checkpoints(tmp_path, IDENTITY | {"run": "b"}) as checkpoints,
    pytest.raises(ValueError, match="another run: run is 'a' there and 'b' here"),
  ):
    checkpoints.restore(state)
  wider = dataclasses.replace(config_of(tiny.graph), hidden_size=24)
  like = learner.abstract_state(
    decoder_graph(wider), tiny.optimizer, tiny.meshes["one"]
  )
  with (
    Checkpoints(tmp_path, IDENTITY) as checkpoints,
    pytest.raises(ValueError, match=r"embedding.* is \(20, 16\) there and \(20, 24\)"),
  ):
    checkpoints.restore(like)
