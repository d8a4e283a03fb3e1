"""The law of a chain says of a token what the chain does to one that was taken."""

import correction_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax.corrections import (
  chain,
  clip,
  importance,
  normalize,
  positions,
  presets,
  reject,
  reject_binary_kl,
  reject_divergence,
  reject_missing,
  reject_negative_divergence,
  reject_probability_difference,
  reject_stale,
  token_law,
  truncate,
  truncate_parts,
  veto,
  watch,
  zero_outside,
)

DATA = oracles.rollouts(seed=31)
RNG = np.random.default_rng(0)
GIVEN = {
  "advantages": RNG.normal(size=DATA.mask.shape).astype(np.float32),
  "versions": RNG.integers(3, 6, DATA.mask.shape).astype(np.int32),
  "learner_version": 6,
}
BY_TOKEN = {
  "nothing": chain(),
  "importance": chain(importance("token")),
  "truncate": chain(truncate(1.1)),
  "clip": chain(clip(1.1)),
  "icepop": chain(zero_outside(1.2)),
  "bands": chain(reject(1.5, level="token"), truncate(1.2), reject_missing()),
  "divergence": chain(reject_divergence(0.02, reduce="token"), truncate(1.2)),
  "kpop": chain(reject_binary_kl(0.02), importance("token")),
  "tv": chain(reject_probability_difference(0.05, by_advantage=True)),
  "stale": chain(reject_stale(2), importance("token")),
}


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_the_token_that_was_taken_gets_its_own_weight(name, by_row):
  correct = BY_TOKEN[name]
  given = GIVEN | ({"advantages": GIVEN["advantages"][:, 0]} if by_row else {})
  out = correct(*DATA.arrays, **given)
  # Among others, at each place of the head in turn.
  others = np.float32(-1.0 - RNG.exponential(size=(*DATA.mask.shape, 3)))
  for place in range(3):
    logp, sampler_logp = others.copy(), others - np.float32(0.3)
    logp[..., place] = np.where(DATA.mask, DATA.old, -1)
    sampler_logp[..., place] = np.where(DATA.mask, DATA.sampler, -1)
    found = token_law(correct)(logp, sampler_logp, **given)[..., place]
    want = np.where(out.mask, out.weight, 0.0)
    np.testing.assert_allclose(found[DATA.mask], want[DATA.mask], rtol=1e-6)
  assert name == "nothing" or (want[DATA.mask] != 1).any()


def test_padding_has_no_weight_and_the_law_no_gradient():
  law = token_law(chain(importance("token")))
  logp = jnp.log(jnp.array([[[0.4, 0.3, 0.2]]]))
  sampler_logp = jnp.array([[[jnp.log(0.2), -jnp.inf, jnp.nan]]])
  np.testing.assert_allclose(law(logp, sampler_logp), [[[2.0, 0.0, 0.0]]], rtol=1e-6)
  slope = jax.grad(lambda x: law(x, sampler_logp).sum())(logp)
  np.testing.assert_array_equal(slope, 0)


def test_sequences_and_turns_are_a_matter_of_the_place():
  whole = reject(1.2, level="geometric"), veto(0.4), reject(1.3, level="turn")
  correct = chain(*whole, reject(1.2, level="token"), truncate(1.1))
  law = token_law(correct)
  assert law.places.stages == whole
  assert law.tokens.stages == correct.stages[3:]
  found = positions(correct, *DATA.arrays)
  np.testing.assert_array_equal(found, chain(*whole)(*DATA.arrays).mask)
  assert 0 < found.sum() < DATA.mask.sum()
  # What the tokens do is not among the places.
  assert positions(chain(reject(1.1, level="token")), *DATA.arrays).sum() == (
    DATA.mask.sum()
  )
  given = chain(reject_negative_divergence(0.01), truncate(2.0))
  mask = positions(given, *DATA.arrays, advantages=GIVEN["advantages"])
  assert 0 < mask.sum() < DATA.mask.sum()


def test_what_is_watched_is_left_out():
  law = token_law(chain(watch(importance("sequence")), truncate(1.1)))
  assert law.tokens.stages == (truncate(1.1),) and not law.places.stages


@pytest.mark.parametrize(
  ("correct", "message"),
  [
    (presets.seq_tis(), "truncate .* what would have followed another token"),
    (chain(importance("geometric")), "importance .* what would have followed"),
    (presets.minpro(), "level 'min_prefix' is not offered"),
    (chain(reject(2.0, level="prefix")), "level 'prefix' is not offered"),
    (chain(truncate(2.0), normalize()), "normalize .* the others of the batch"),
    (presets.m2po(0.1), "reject_second_moment .* the others of the batch"),
    (presets.adaptive(), "adaptive_truncate .* the others of the batch"),
    (chain(truncate_parts()), "truncate_parts .* by itself"),
    (
      chain(reject(2.0, level="token"), reject(2.0)),
      "reject .* left of a sequence; put it in front",
    ),
  ],
)
def test_what_has_no_law_says_why(correct, message):
  with pytest.raises(ValueError, match=message):
    token_law(correct)
