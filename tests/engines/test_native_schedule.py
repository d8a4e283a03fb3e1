"""Continuous batching: slots, refills and cache sizes change nothing but the time."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from test_native import EOS, PAD, compiled, engine_of

from tis_jax import models
from tis_jax.engines.native import prefixes
from tis_jax.logprobs import Sampling, token_logprobs
from tis_jax.rollouts import ABORTED, LENGTH, STOP

T = 40


@pytest.fixture(scope="module")
def policy():
  """Whose answers end at every length."""
  config = models.DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    qk_norm=True,
    attention_bias=True,
  )
  params = jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(0))
  noise = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), params
  )
  return models.decoder_graph(config), params


def ragged(lengths, width=None):
  width = width or max(lengths)
  mask = np.arange(width) >= width - np.array(lengths)[:, None]
  tokens = np.random.default_rng(1).integers(2, 11, mask.shape)
  return np.where(mask, tokens, PAD).astype(np.int32), mask


def answer(policy, prompts, samples=3, key=1, sampling=None, **options):
  engine = engine_of(policy, sampling, **{"max_new_tokens": T} | options)
  engine.update(policy[1], version=0)
  return engine, engine.generate(*prompts, samples=samples, key=jax.random.key(key))


def full_pass(policy, prompts, out, samples=3):
  """Log-probs of the answers, each alone, right behind its prompt."""
  graph, params = policy
  found = np.zeros(out.tokens.shape, np.float32)
  for row in np.flatnonzero(out.mask.any(axis=1)):
    ids = prompts[0][row // samples][prompts[1][row // samples]]
    length = int(out.mask[row].sum())
    both = np.zeros(128, np.int32)
    both[: len(ids) + length] = np.concatenate([ids, out.tokens[row, :length]])
    logp = np.asarray(_score(graph, params, both))
    found[row, :length] = logp[len(ids) - 1 :][:length]
  return found


@functools.partial(jax.jit, static_argnums=0)
def _score(graph, params, both):
  model = nnx.merge(graph, params)
  hidden, _ = model(both[None, :-1])
  return token_logprobs(hidden, model.head(), both[None, 1:]).logp[0]


LENGTHS = [5, 1, 9, 3, 17, 2, 8]


@pytest.fixture(scope="module")
def expected(policy):
  """Every answer in a slot of its own."""
  return answer(policy, ragged(LENGTHS), slots=21)[1]


@pytest.mark.parametrize("slots", [1, 2, 5, 20])
def test_tokens_do_not_depend_on_the_slots(policy, expected, slots):
  engine, out = answer(policy, ragged(LENGTHS), slots=slots)
  np.testing.assert_array_equal(out.tokens, expected.tokens)
  np.testing.assert_array_equal(out.mask, expected.mask)
  np.testing.assert_array_equal(out.finish_reasons, expected.finish_reasons)
  np.testing.assert_allclose(out.sampler_logp, expected.sampler_logp, atol=1e-5)
  assert engine.health["occupancy"] > (0.5 if slots < 20 else 0)
  # The answers are as ragged as this test needs them.
  lengths = expected.mask.sum(axis=1)
  assert lengths.min() <= 3 and lengths.max() == T and len(set(lengths)) > 8


def test_nor_on_what_else_is_in_the_batch(policy, expected):
  # A request's noise is by the place of its prompt; the others are replaced.
  tokens, mask = ragged(LENGTHS)
  other, other_mask = tokens.copy(), mask.copy()
  other[[0, 1, 2, 3, 5, 6]] = other[[6, 5, 3, 2, 1, 0]]
  other_mask[[0, 1, 2, 3, 5, 6]] = mask[[6, 5, 3, 2, 1, 0]]
  _, out = answer(policy, (other, other_mask), slots=4)
  np.testing.assert_array_equal(out.tokens[12:15], expected.tokens[12:15])
  np.testing.assert_array_equal(out.mask[12:15], expected.mask[12:15])


def test_logp_is_that_of_one_full_pass_after_refills(policy):
  prompts = ragged(LENGTHS)
  _, out = answer(policy, prompts, slots=4)
  found = full_pass(policy, prompts, out)
  np.testing.assert_allclose(out.sampler_logp[out.mask], found[out.mask], atol=1e-4)


def test_a_stop_token_ends_at_once_and_the_limit_at_the_last_place(policy):
  prompts = ragged(LENGTHS)
  _, out = answer(policy, prompts, slots=4, eos_ids=tuple(range(11)))
  assert (out.mask.sum(axis=1) == 1).all() and (out.finish_reasons == STOP).all()
  _, out = answer(policy, prompts, slots=4, eos_ids=())
  assert out.mask.all() and (out.finish_reasons == LENGTH).all()
  found = full_pass(policy, prompts, out)
  np.testing.assert_allclose(out.sampler_logp, found, atol=1e-4)


def test_each_response_may_have_a_limit_of_its_own(policy, expected):
  engine, _ = answer(policy, ragged(LENGTHS), slots=4)
  limits = np.arange(21) % 7 + 1
  out = engine.generate(
    *ragged(LENGTHS), samples=3, key=jax.random.key(1), limits=limits
  )
  short = np.minimum(expected.mask.sum(axis=1), limits)
  np.testing.assert_array_equal(out.mask.sum(axis=1), short)
  np.testing.assert_array_equal(out.tokens[out.mask], expected.tokens[out.mask])
  for bad in ([1] * 20, [0] * 21, [T + 1] * 21):
    with pytest.raises(ValueError, match="limits must be 21 numbers from 1 to 40"):
      engine.generate(*ragged(LENGTHS), samples=3, key=jax.random.key(1), limits=bad)


@pytest.mark.slow
def test_a_cache_grows_and_shrinks_with_what_it_holds(policy):
  room = 400
  prompts = ragged([3, 5, 2, 4])
  limits = [380, 4, 390, 5] * 2
  engine = engine_of(policy, max_new_tokens=room, eos_ids=(), slots=2)
  engine.update(policy[1], version=0)
  before = compiled()
  key = jax.random.key(2)
  out = engine.generate(*prompts, samples=2, key=key, limits=limits)
  grown = {name: n - before[name] for name, n in compiled().items()}
  # 404 places: 208 and 416 of them.
  assert grown["decode"] == 2 and 1 <= grown["resize"] <= 2
  assert out.mask.sum(axis=1).tolist() == limits
  wide = engine_of(policy, max_new_tokens=room, eos_ids=(), slots=8)
  wide.update(policy[1], version=0)
  whole = wide.generate(*prompts, samples=2, key=key, limits=limits)
  np.testing.assert_array_equal(out.tokens, whole.tokens)


def test_compilations_are_few_and_a_second_batch_has_none(policy):
  law = Sampling(temperature=0.8)  # Of its own, so that nothing is there yet.
  before = compiled()
  engine, _ = answer(policy, ragged(LENGTHS), sampling=law, slots=4, top_logprobs=2)
  first = {name: n - before[name] for name, n in compiled().items()}
  assert first["decode"] == 1 and first["fill"] <= 2 and first["read"] <= 2
  again = compiled()
  lengths = [2, 17, 1, 1, 1, 6, 7]
  engine.update(jax.tree.map(lambda x: 1.1 * x, policy[1]), version=1)
  engine.generate(*ragged(lengths), samples=3, key=jax.random.key(4))
  assert compiled() == again


def test_a_group_reads_its_prompt_once(policy):
  engine, _ = answer(policy, ragged(LENGTHS), samples=3, slots=2)
  assert engine.health["prompt_tokens"] == sum(LENGTHS)
  assert engine.health["queue"] > 0 and 0 < engine.health["cache_use"] <= 1


def test_a_call_that_has_room_reads_the_next_prompts_too(policy, monkeypatch):
  calls, read = [], prefixes.read
  monkeypatch.setattr(prefixes, "read", lambda *a: calls.append(a[2]) or read(*a))
  prompts = ragged([3] * 12)
  engine, _ = answer(policy, prompts, samples=1, slots=2)
  assert engine.health["prompt_tokens"] == 36
  # Two slots, so that one or two prompts are wanted at a time.
  assert len(calls) * len(calls[0]) == 12


def test_long_prompts_are_read_in_chunks_beside_the_others(policy, monkeypatch):
  lengths = [70, 3, 20, 64, 5]
  prompts = ragged(lengths)
  _, whole = answer(policy, prompts, slots=2)
  monkeypatch.setattr(prefixes, "CHUNK", 16)
  _, out = answer(policy, prompts, slots=2)
  np.testing.assert_array_equal(out.tokens, whole.tokens)
  np.testing.assert_allclose(out.sampler_logp, whole.sampler_logp, atol=1e-5)


def test_bad_prompts_are_named_and_the_rest_goes_on(policy):
  said = []
  prompts = ragged([5, 0, 12, 13, 30], width=30)
  _, out = answer(policy, prompts, slots=2, capacity=12, say=said.append, eos_ids=())
  assert [line.split(":")[0] for line in said] == [
    "prompt 3 has 13 tokens, a slot holds 12",
    "prompt 4 has 30 tokens, a slot holds 12",
  ]
  # The last token drawn needs no place.
  lengths = out.mask.sum(axis=1).reshape(5, 3)
  assert (lengths == np.array([8, 0, 1, 0, 0])[:, None]).all()
  reasons = out.finish_reasons.reshape(5, 3)[:, 0].tolist()
  assert reasons == [LENGTH, LENGTH, LENGTH, ABORTED, ABORTED]
  found = full_pass(policy, prompts, out)
  np.testing.assert_allclose(out.sampler_logp[out.mask], found[out.mask], atol=1e-4)


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ({"eos_ids": (EOS, 11)}, r"stop tokens \[11\] are not in the vocabulary of 11"),
    ({"slots": -1}, "slots must be at least 0"),
    ({"capacity": -1}, "capacity must be at least 0"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"new_params": "never"}, "new_params must be one of"),
    ({"cache": "int4"}, "cache must be one of"),
    ({"head": "int8"}, "head must be one of"),
  ],
)
def test_what_makes_no_sense_is_refused(policy, bad, message):
  with pytest.raises(ValueError, match=message):
    engine_of(policy, **bad)
