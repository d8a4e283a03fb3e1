"""A tiny decoder, a batch with everything that is awkward in it, compiled updates."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm

from tis_jax import learner
from tis_jax.models import DecoderConfig, abstract_params, decoder_graph

CONFIG = DecoderConfig(
  vocab_size=20,
  hidden_size=16,
  intermediate_size=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
)


@pytest.fixture(scope="session")
def tiny():
  """The model, one optimizer, meshes by name, and updates compiled once a session."""
  graph = decoder_graph(CONFIG)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), x.dtype),
    abstract_params(CONFIG),
  )
  # With Adam's usual epsilon the first step is the sign of a gradient: all rounding.
  settings = learner.AdamW(
    0.01, warmup_steps=0, weight_decay=0.1, clip_norm=0.5, epsilon=1e-3
  )
  optimizer = learner.make_optimizer(settings, updates=100)
  meshes = {
    "one": learner.make_mesh(devices=jax.devices()[:1]),
    "2x2x2": learner.make_mesh(2, 2, 2),
    "1x4x2": learner.make_mesh(1, 4, 2),
  }

  @functools.cache
  def update(mesh="one", **settings):
    algorithm = make_algorithm(**settings)

    traces = []

    def advantage(rewards, group_ids, baseline_mask):
      # Once, however many steps and passes: a second trace is a recompilation.
      assert not traces, f"retraced {settings}"
      traces.append(rewards.shape)
      return algorithm.advantage(rewards, group_ids, baseline_mask=baseline_mask)

    counted = dataclasses.replace(algorithm, advantage=advantage)
    return learner.make_update(graph, counted, optimizer, meshes[mesh])

  def state(mesh="one"):
    return learner.init_state(params, optimizer, jax.random.key(1), meshes[mesh])

  def step(batch, mesh="one", *, reference=None, **settings):
    """One update from a fresh state: `(state, metrics)`, on the host."""
    references = () if reference is None else (reference,)
    out = update(mesh, **settings)(state(mesh), batch, np.int32(VERSION), *references)
    return jax.device_get(out)

  return SimpleNamespace(
    config=CONFIG,
    graph=graph,
    params=params,
    optimizer=optimizer,
    meshes=meshes,
    update=update,
    state=state,
    step=step,
  )


@pytest.fixture(scope="session")
def batch():
  """32 rows, ragged, with a hole in the mask, a group without signal, empty rows."""
  rng = np.random.default_rng(0)
  rows, p, t = 30, 4, 6
  length = rng.integers(1, t + 1, rows)
  prompt_length = rng.integers(1, p + 1, rows)
  mask = np.arange(t)[None] < length[:, None]
  length[0], mask[0] = t, [True, True, False, False, True, True]
  rewards = rng.integers(0, 2, rows).astype(np.float32)
  rewards[4:8] = 1.0
  drawn = learner.Batch(
    prompts=rng.integers(3, 20, (rows, p)).astype(np.int32),
    prompt_mask=np.arange(p)[None] >= p - prompt_length[:, None],
    tokens=rng.integers(3, 20, (rows, t)).astype(np.int32),
    mask=mask,
    sampler_logp=np.where(mask, rng.normal(-3.0, 0.5, (rows, t)), 0).astype(np.float32),
    versions=np.full((rows, t), VERSION - 2, np.int32),
    rewards=rewards,
    group_ids=(np.arange(rows) // 4 * 11 - 5).astype(np.int32),
    finish_reasons=(length == t).astype(np.int8),
  )
  drawn.versions[0, :2] = VERSION - 3
  return learner.pad(drawn, rows=32)
