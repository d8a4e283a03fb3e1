"""Replaying where the sampler's mixture sent its tokens, against it written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from learner_oracle import VERSION, advantages, compact, make_algorithm
from test_decoder import reference

from tis_jax import learner
from tis_jax.engines import NativeEngine
from tis_jax.logprobs import Sampling
from tis_jax.models import abstract_params, decoder_graph, flatten

EXPERTS, CHOSEN = 6, 2
REPLAY = {"replay_experts": True, "correction__stages": (), "loss__name": "reinforce"}


@pytest.fixture(scope="module")
def mixture(tiny):
  """(config, graph, params) of a mixture whose router is not sure of itself."""
  config = dataclasses.replace(
    tiny.config, num_experts=EXPERTS, experts_per_token=CHOSEN, intermediate_size=16
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.0, 0.6, x.shape), x.dtype),
    abstract_params(config),
  )
  return config, decoder_graph(config), params


@pytest.fixture(scope="module")
def routed(batch, mixture):
  """The batch as a sampler records it that sends tokens elsewhere, some unrecorded."""
  rng, layers = np.random.default_rng(5), mixture[0].num_layers
  places = batch.prompts.shape[1] + batch.tokens.shape[1]
  all_of_them = np.tile(np.arange(EXPERTS), (len(batch.rewards), places, layers, 1))
  ids = rng.permuted(all_of_them, axis=-1)[..., :CHOSEN].astype(np.int16)
  fed = np.concatenate([batch.prompt_mask, learner_reads(batch.mask)], axis=1)
  ids[~fed] = -1
  ids[3, 5] = -1
  return batch._replace(routed_experts=ids)


def learner_reads(mask):
  """Up to the last sampled token, which is never fed in."""
  after = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] - mask
  return after > 0


def compact_routed(batch):
  """The experts of `compact(batch)`'s tokens."""
  ids = np.full_like(batch.routed_experts, -1)
  for row, real in enumerate(batch.prompt_mask):
    first = len(real) - real.sum()
    ids[row, : ids.shape[1] - first] = batch.routed_experts[row, first:]
  return ids


def scores(mixture, params, batch):
  """`[B, T]` log-probs, from rows without padding."""
  tokens, starts = compact(batch)
  model = nnx.merge(mixture[1], params)
  hidden, _ = model(tokens, routed_BSLE=compact_routed(batch))
  logp = jax.nn.log_softmax(hidden @ model.head())
  slot = starts[:, None] - 1 + np.arange(batch.tokens.shape[1])[None]
  rows = logp[np.arange(len(slot))[:, None], np.maximum(slot, 0)]
  return jnp.take_along_axis(rows, jnp.asarray(batch.tokens)[..., None], -1)[..., 0]


def step(tiny, mixture, batch, mesh="one", reference=None, **settings):
  made = make_algorithm(**REPLAY | settings)
  where = tiny.meshes[mesh]
  update = learner.make_update(mixture[1], made, tiny.optimizer, where)
  state = learner.init_state(mixture[2], tiny.optimizer, jax.random.key(1), where)
  further = () if reference is None else (reference,)
  return jax.device_get(update(state, batch, np.int32(VERSION), *further))


def test_a_replayed_log_prob_is_that_of_the_recorded_experts(mixture, routed):
  config, graph, params = mixture
  score = jax.jit(lambda params, b: learner.score(graph, params, b, replay=True).logp)
  found = np.asarray(score(params, routed))
  own = np.asarray(learner.score(graph, params, routed).logp)
  for row in range(8):
    prompt = routed.prompts[row][routed.prompt_mask[row]]
    length = int(np.flatnonzero(routed.mask[row]).max()) + 1
    ids = np.concatenate([prompt, routed.tokens[row, :length]])
    first = routed.prompts.shape[1] - len(prompt)
    sent = routed.routed_experts[row, first : first + len(ids)]
    told = sent.swapaxes(0, 1).reshape(-1, CHOSEN)
    told = (None if (x < 0).any() else x for x in told)
    want = reference(config, params, ids, routed=told)
    want = want[np.arange(len(ids) - 1), ids[1:]][len(prompt) - 1 :]
    there = routed.mask[row, :length]
    np.testing.assert_allclose(found[row, :length][there], want[there], atol=3e-5)
  assert np.abs(found - own)[routed.mask].mean() > 0.05


def test_an_update_differentiates_what_it_replays(tiny, mixture, routed):
  def loss(params):
    logp = jnp.where(routed.mask, scores(mixture, params, routed), 0)
    return -(advantages(routed)[:, None] * logp).sum() / routed.mask.sum()

  gradient = jax.jit(jax.grad(loss))(mixture[2])
  start = tiny.optimizer.init(mixture[2])
  moves, _ = tiny.optimizer.update(gradient, start, mixture[2])
  want = jax.tree.map(jnp.add, mixture[2], moves)
  state, metrics = step(tiny, mixture, routed)
  norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(metrics["optimizer/grad_norm"], norm, rtol=1e-4)
  same = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6)
  jax.tree.map(same, state.params, want)
  router = flatten(gradient)["layers/mlp/router"]
  assert np.abs(router).max() > 1e-4


@pytest.mark.slow
def test_neither_passes_nor_devices_change_it(tiny, mixture, routed):
  one, metrics = step(tiny, mixture, routed)
  for changes in ({"micro_batches": 4}, {"mesh": "2x2x2"}, {"old_logp": "current"}):
    state, found = step(tiny, mixture, routed, **changes)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6)
    jax.tree.map(same, state.params, one.params)
    np.testing.assert_allclose(found["loss/total"], metrics["loss/total"], atol=1e-5)


def test_a_reference_has_experts_of_its_own(tiny, mixture, routed):
  _, metrics = step(
    tiny, mixture, routed, reference=mixture[2], kl__coefficient=0.1, kl__kind="k3"
  )
  own = learner.score(mixture[1], mixture[2], routed).logp
  d = (np.asarray(own) - scores(mixture, mixture[2], routed))[routed.mask]
  k3 = (np.exp(d) - d - 1).mean()
  np.testing.assert_allclose(metrics["kl/reference"], k3, rtol=1e-3)
  assert k3 > 1e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_engine_records_is_what_the_learner_replays(mixture, precision):
  _, graph, params = mixture
  prompts = np.random.default_rng(2).integers(3, 20, (32, 4)).astype(np.int32)
  engine = NativeEngine(
    graph, Sampling(), max_new_tokens=12, eos_ids=(), pad_id=0,
    precision=precision, routed_experts=True,
  )  # fmt: skip
  engine.update(params, version=0)
  mask = np.ones(prompts.shape, bool)
  out = engine.generate(prompts, mask, samples=8, key=jax.random.key(3))
  rows = len(out.tokens)
  batch = learner.Batch(
    np.repeat(prompts, 8, 0), np.repeat(mask, 8, 0), out.tokens, out.mask,
    out.sampler_logp, out.versions, np.zeros(rows, np.float32),
    np.zeros(rows, np.int32), out.finish_reasons, routed_experts=out.routed_experts,
  )  # fmt: skip
  run = jax.jit(
    lambda params, batch, replay: learner.score(graph, params, batch, replay=replay),
    static_argnums=2,
  )
  off = [
    np.abs(run(params, batch, replay).logp - batch.sampler_logp).mean()
    for replay in (True, False)
  ]
  assert off[0] < (1e-5 if precision == "float32" else 0.05)
  if precision == "bfloat16":
    assert off[1] > 1.5 * off[0]


def test_what_cannot_be_replayed_is_refused(tiny, mixture, batch, routed):
  with pytest.raises(ValueError, match=r"recorded with sampler.routed_experts"):
    step(tiny, mixture, batch)
  with pytest.raises(ValueError, match="replay_experts=True takes padded rows"):
    make_algorithm(**REPLAY, packing=True)
  assert make_algorithm(micro_batches=2).packs
  assert not make_algorithm(**REPLAY, micro_batches=2).packs
  packed = learner.pack(routed, make_algorithm(micro_batches=2), tiny.meshes["one"])
  with pytest.raises(ValueError, match="give the plain batch"):
    step(tiny, mixture, packed, micro_batches=2)


def test_a_batch_grows_on_both_sides_of_what_is_routed(routed):
  grown = learner.pad(routed, rows=34, prompt_length=6, response_length=9)
  ids, rows = grown.routed_experts, len(routed.rewards)
  assert ids.shape[:2] == (34, 15) and ids.dtype == np.int16
  np.testing.assert_array_equal(ids[:rows, 2:-3], routed.routed_experts)
  ids[:rows, 2:-3] = -1
  assert (ids == -1).all()
