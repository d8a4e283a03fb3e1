"""Responses that are interrupted and go on: the same tokens, each by its version."""

import jax
import numpy as np
import pytest
from test_native import compiled, engine_of
from test_native_schedule import LENGTHS, T, full_pass, policy, ragged  # noqa: F401

from tis_jax import models
from tis_jax.engines.native import INTERRUPTED
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import ABORTED, LENGTH, STOP

SAMPLES = 3


def request_keys(key):
  """Of every response, as `generate` makes them of one key."""
  fold = jax.random.fold_in
  keys = [
    fold(fold(jax.random.key(key), prompt), sample)
    for prompt in range(len(LENGTHS))
    for sample in range(SAMPLES)
  ]
  return jax.numpy.stack(keys)


def go_on(engine, begun, more, key=1, **how):
  tokens, mask = (np.repeat(x, SAMPLES, axis=0) for x in ragged(LENGTHS))
  more = np.broadcast_to(more, len(tokens))
  return engine.go_on(tokens, mask, begun, more=more, keys=request_keys(key), **how)


def in_parts(policy, *parts, sampling=None, **options):  # noqa: F811
  """Responses of so many tokens more a call, by params `factor` times the policy's."""
  engine = engine_of(policy, sampling, **{"max_new_tokens": T} | options)
  engine.update(policy[1], version=0)
  out = engine.begin(len(LENGTHS) * SAMPLES, max(LENGTHS))
  for version, (more, factor) in enumerate(parts):
    params = jax.tree.map(lambda x, factor=factor: factor * x, policy[1])
    engine.update(params, version=version)
    out = go_on(engine, out, more)
  return engine, out


def test_a_response_begins_with_nothing_said(policy):  # noqa: F811
  with pytest.raises(RuntimeError, match="call `update` first"):
    engine_of(policy).begin(3, 4)
  _, out = in_parts(policy, kept_width=4, top_logprobs=2, sampling=Sampling(top_k=4))
  assert not out.mask.any() and (out.finish_reasons == INTERRUPTED).all()
  assert out.kept_tokens.shape == (21, T, 4) and out.top_logp.shape == (21, T, 2)


def test_interrupted_or_not_the_tokens_are_the_same(policy):  # noqa: F811
  law = Sampling(temperature=0.8, top_k=4)
  more = {"kept_width": 4, "top_logprobs": 2, "sampling": law}
  engine = engine_of(
    policy, law, max_new_tokens=T, kept_width=4, top_logprobs=2, slots=4
  )
  engine.update(policy[1], version=0)
  whole = engine.generate(*ragged(LENGTHS), samples=SAMPLES, key=jax.random.key(1))
  first = in_parts(policy, (7, 1), slots=4, **more)[1]
  lengths = whole.mask.sum(axis=1)
  np.testing.assert_array_equal(first.mask.sum(axis=1), np.minimum(lengths, 7))
  ongoing = first.finish_reasons == INTERRUPTED
  stopped = whole.finish_reasons == STOP
  np.testing.assert_array_equal(ongoing, (lengths > 7) | ((lengths == 7) & ~stopped))
  parts = [(7, 1), (1, 1), (12, 1), (T, 1)]
  engine, out = in_parts(policy, *parts, slots=4, **more)
  assert set(out.finish_reasons.tolist()) == {STOP, LENGTH}
  for name in ("tokens", "mask", "finish_reasons", "kept_tokens", "top_tokens"):
    np.testing.assert_array_equal(getattr(out, name), getattr(whole, name), name)
  for name in ("sampler_logp", "kept_mass", "top_logp"):
    np.testing.assert_allclose(
      getattr(out, name)[out.mask], getattr(whole, name)[out.mask], atol=1e-5
    )
  # Prompt and what was said are read again, each row's of its own, a prompt once.
  assert engine.health["prompt_tokens"] > 0
  again = go_on(engine, out, T)
  np.testing.assert_array_equal(again.tokens, out.tokens)
  assert engine.health["tokens"] == 0


def test_each_part_has_the_law_of_its_own_params(policy):  # noqa: F811
  factors = (1, 1.5, 0.8)
  parts = list(zip((9, 11, T), factors, strict=True))
  _, out = in_parts(policy, *parts, slots=4, eos_ids=())
  assert out.mask.all() and (np.diff(out.versions, axis=1) >= 0).all()
  for version, (start, end) in enumerate(((0, 9), (9, 20), (20, T))):
    there = np.zeros(out.mask.shape, bool)
    there[:, start:end] = True
    np.testing.assert_array_equal(out.versions == version, there)
    params = jax.tree.map(lambda x, f=factors[version]: f * x, policy[1])
    found = full_pass((policy[0], params), ragged(LENGTHS), out)
    np.testing.assert_allclose(out.sampler_logp[there], found[there], atol=1e-4)
  # Three laws, and not one.
  other = full_pass(policy, ragged(LENGTHS), out)
  assert np.abs(other - out.sampler_logp)[out.versions > 0].max() > 1e-2


def test_params_may_also_change_inside_a_part(policy):  # noqa: F811
  engine, out = in_parts(policy, (9, 1), slots=4, new_params="switch", eos_ids=())
  new = jax.tree.map(lambda x: 1.5 * x, policy[1])
  found = iter([None, (jax.device_get(models.flatten(new)), 4)])
  engine.newer = lambda: next(found, None)
  out = go_on(engine, out, 30)
  assert set(out.versions[:, 9:39].ravel().tolist()) == {0, 4}
  assert (out.versions[:, :9] == 0).all() and out.mask[:, :39].all()


def test_each_may_have_a_number_of_its_own_and_nothing_is_compiled_again(policy):  # noqa: F811
  engine, out = in_parts(policy, (3, 1), (5, 1), slots=4, eos_ids=())
  before = compiled()
  out = go_on(engine, out, np.arange(21) % 5 + 1)
  np.testing.assert_array_equal(out.mask.sum(axis=1), 8 + np.arange(21) % 5 + 1)
  assert compiled() == before
  out = go_on(engine, out, T)
  assert out.mask.all() and (out.finish_reasons == LENGTH).all()


def test_a_slot_that_is_full_ends_a_response_and_a_long_prompt_is_given_up(policy):  # noqa: F811
  said = []
  options = {"slots": 2, "capacity": 12, "say": said.append, "eos_ids": ()}
  _, out = in_parts(policy, (3, 1), (T, 1), **options)
  assert said == [
    "3 responses are given up: their prompts have up to 17 tokens, a slot holds 12 "
    "(raise the engine's capacity)"
  ]
  reasons = out.finish_reasons.reshape(-1, SAMPLES)
  assert (reasons[4] == ABORTED).all() and (np.delete(reasons, 4, 0) == LENGTH).all()
  wanted = np.maximum(12 - np.array(LENGTHS) + 1, 0)
  np.testing.assert_array_equal(out.mask.sum(axis=1)[::SAMPLES], wanted)


def test_what_is_enough_is_asked_between_tokens_and_nothing_is_read_twice(policy):  # noqa: F811
  law = Sampling(temperature=0.8, top_k=4)
  engine = engine_of(policy, law, max_new_tokens=T, slots=4)
  engine.update(policy[1], version=0)
  whole = engine.generate(*ragged(LENGTHS), samples=SAMPLES, key=jax.random.key(1))
  asked = []

  def enough(reasons):
    asked.append((reasons != INTERRUPTED).sum())
    return asked[-1] >= 5

  begun = engine.begin(len(LENGTHS) * SAMPLES, max(LENGTHS))
  out = go_on(engine, begun, T, enough=enough, every=3)
  assert len(asked) > 2 and max(asked[:-1]) < 5
  ended = out.finish_reasons != INTERRUPTED
  assert 5 <= ended.sum() < len(ended)
  np.testing.assert_array_equal(out.mask[ended], whole.mask[ended])
  np.testing.assert_array_equal(out.tokens[out.mask], whole.tokens[out.mask])
  # Each prompt once, however often it was asked.
  assert engine.health["prompt_tokens"] <= sum(LENGTHS)
  assert go_on(engine, out, T).tokens.tolist() == whole.tokens.tolist()
