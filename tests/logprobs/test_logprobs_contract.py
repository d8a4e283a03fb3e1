"""The sampling-support contract, on a policy small enough to enumerate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logprobs_oracle import expected, log_softmax, make_case, relative_error, run

from tis_jax.logprobs import (
  Sampling,
  agree,
  comparable,
  comparable_top,
  kept_mass,
  kept_tokens,
  logprobs_from_logits,
  support,
  token_logprobs,
)

_POSITIONS, _VOCAB, _WIDTH = 5, 12, 6
_TEMPERATURE = 0.8
_RULES = {"top_k": 7, "top_p": 0.8, "min_p": 0.05}


class World:
  """A sampler's logits at some positions, and every token as if it had been drawn."""

  def __init__(self, seed=0):
    rng = np.random.default_rng(seed)
    self.hidden = rng.normal(size=(_POSITIONS, _WIDTH)).astype(np.float32)
    self.head = rng.normal(size=(_WIDTH, _VOCAB)).astype(np.float32)
    self.newer = self.head + 0.3 * rng.normal(size=self.head.shape).astype(np.float32)
    self.tokens = np.tile(np.arange(_VOCAB, dtype=np.int32), (_POSITIONS, 1))
    self.scaled = self.hidden @ self.head / np.float32(_TEMPERATURE)
    self.kept = np.asarray(support(self.scaled, **_RULES))
    raw = log_softmax(self.scaled.astype(np.float64))
    self.mass = np.where(self.kept, np.exp(raw), 0).sum(-1)
    self.raw = raw.astype(np.float32)
    self.law = np.where(self.kept, np.exp(raw), 0) / self.mass[:, None]
    with np.errstate(divide="ignore"):
      self.processed = np.log(self.law).astype(np.float32)

  def every(self, x):
    """`[P, ...]` per position to `[P, V, ...]` per draw."""
    return np.repeat(np.asarray(x)[:, None], _VOCAB, axis=1)

  def learner(self, head, kept=None):
    return token_logprobs(
      self.every(self.hidden), head, self.tokens, temperature=_TEMPERATURE,
      kept_tokens=kept,
    ).logp  # fmt: skip

  def record(self, logprobs, mass, width):
    """What `comparable` and the learner need of a record of this kind."""
    sampling = Sampling(temperature=_TEMPERATURE, logprobs=logprobs, **_RULES)
    kept = None
    if width:
      kept = self.every(kept_tokens(self.scaled, self.kept, width))
    read = comparable(
      sampling,
      self.raw if logprobs == "raw" else self.processed,
      kept_mass=self.every(self.mass.astype(np.float32)) if mass else None,
      kept_tokens=kept,
    )
    agreed = agree(sampling, kept_mass=mass, kept_tokens=bool(width))
    return read, kept if agreed.processed else None

  def ratio(self, head, logprobs, mass, width):
    read, kept = self.record(logprobs, mass, width)
    return np.exp(np.asarray(self.learner(head, kept) - read.sampler_logp)), read


_KINDS = [
  ("raw", False, 0),
  ("raw", True, 0),
  ("processed", True, 0),
  ("processed", False, _VOCAB),
  ("processed", True, _VOCAB),
  ("raw", True, _VOCAB),
  ("processed", True, 4),
  ("raw", True, 4),
]


@pytest.fixture(scope="module")
def world():
  return World()


@pytest.mark.parametrize(("logprobs", "mass", "width"), _KINDS)
def test_an_unchanged_policy_has_ratio_one(world, logprobs, mass, width):
  ratio, read = world.ratio(world.head, logprobs, mass, width)
  assert np.asarray(read.present).all()
  np.testing.assert_allclose(ratio[world.kept], 1.0, atol=2e-5)


@pytest.mark.parametrize(("logprobs", "mass", "width"), _KINDS)
def test_exact_means_that_ratios_average_to_one(world, logprobs, mass, width):
  """E_mu[pi'/mu] = 1 exactly on one support; otherwise it is M' / M."""
  ratio, read = world.ratio(world.newer, logprobs, mass, width)
  average = (world.law * np.where(world.kept, ratio, 0)).sum(-1)
  exact = np.asarray(read.exact)[:, 0]
  new_law = np.exp(log_softmax(world.hidden @ world.newer / np.float64(_TEMPERATURE)))
  drift = np.where(world.kept, new_law, 0).sum(-1) / world.mass
  np.testing.assert_allclose(average[exact], 1.0, atol=2e-5)
  np.testing.assert_allclose(average[~exact], drift[~exact], atol=2e-5)
  assert abs(drift - 1).max() > 0.01  # else the two would be the same
  assert exact.all() == (width == _VOCAB)
  if width == 4:
    assert exact.any() and not exact.all()


def test_a_set_that_does_not_fit_without_a_mass_is_not_present(world):
  ratio, read = world.ratio(world.head, "processed", False, 4)
  present = np.asarray(read.present)
  fits = world.kept.sum(-1) <= 4
  np.testing.assert_array_equal(present[:, 0], fits)
  np.testing.assert_allclose(ratio[world.kept & present], 1.0, atol=2e-5)


def test_mass_alone_gives_back_the_raw_log_prob(world):
  read, _ = world.record("processed", True, 0)
  np.testing.assert_allclose(
    np.asarray(read.sampler_logp)[world.kept], world.raw[world.kept], atol=1e-5
  )


def test_no_rules_need_no_record(world):
  for logprobs in ("raw", "processed"):
    sampling = Sampling(temperature=_TEMPERATURE, logprobs=logprobs)
    read = comparable(sampling, world.raw)
    np.testing.assert_array_equal(read.sampler_logp, world.raw)
    assert np.asarray(read.exact).all() and agree(sampling).exact
  assert agree(Sampling(logprobs="untempered")).exact


@pytest.mark.parametrize(
  ("change", "record", "message"),
  [
    ({"logprobs": "processed"}, {}, "neither kept_mass nor kept_tokens"),
    ({"temperature": 0.0}, {}, "greedy"),
    ({"logprobs": "untempered"}, {}, "before the temperature, which is"),
    ({"logprobs": "scores"}, {}, "is not one of"),
    ({"top_p": 1.5}, {}, "not in"),
    ({}, {"exact": True}, "needs kept_tokens"),
    ({}, {"exact": True, "kept_mass": True}, "needs kept_tokens"),
    ({}, {"exact": True, "kept_tokens": True}, "needs kept_mass"),
  ],
)
def test_what_is_missing_is_said(change, record, message):
  sampling = dataclasses.replace(Sampling(temperature=0.7, top_p=0.8), **change)
  with pytest.raises(ValueError, match=message):
    agree(sampling, **record)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_kept_tokens_equal_float64_with_gradients(implementation):
  """The renormalised distribution in every reading, over blocks of vocabulary."""
  case = make_case((2, 4), 16, 1300, seed=2)
  logits = (case.hidden @ case.head + case.bias) / case.temperature[..., None]
  kept = np.array(support(logits, top_k=20))
  kept[0, 0] = True  # a set that does not fit: this position keeps everything
  tokens = np.asarray(kept_tokens(logits, kept, 24))
  assert (tokens[0, 0] == -1).all() and (tokens[1] >= 0).any()
  case = case._replace(targets=np.argmax(logits, axis=-1).astype(np.int32))
  out, grads = jax.jit(
    lambda: run(
      token_logprobs, case, kept_tokens=tokens, implementation=implementation,
      block_elements=8 * 256,
    )
  )()  # fmt: skip
  want = expected(case, kept=kept)
  for name in ("logp", "entropy", "log_normalizer"):
    np.testing.assert_allclose(getattr(out, name), getattr(want, name), atol=1e-5)
  wanted = (want.d_hidden, want.d_head, want.d_bias, want.d_temperature)
  for got, right in zip(grads, wanted, strict=True):
    assert relative_error(got, right) < 1e-4


def test_a_target_that_was_not_kept_has_probability_zero():
  logits = np.zeros((1, 4), np.float32)
  out = logprobs_from_logits(logits, np.array([3]), kept_tokens=np.array([[0, 1]]))
  assert out.logp[0] == -np.inf and out.entropy[0] == pytest.approx(np.log(2))


@settings(max_examples=30, deadline=None)
@given(
  seed=st.integers(0, 2**31 - 1),
  top_k=st.integers(0, 14),
  top_p=st.floats(0.05, 1.0),
  min_p=st.floats(0.0, 0.9),
)
def test_support_is_what_a_loop_over_sorted_tokens_keeps(seed, top_k, top_p, min_p):
  rng = np.random.default_rng(seed)
  scaled = rng.normal(size=(4, _VOCAB)).astype(np.float32) * 2
  scaled[:, 3] = -np.inf
  kept = support(jnp.asarray(scaled), top_k=top_k, top_p=top_p, min_p=min_p)
  kept = np.asarray(np.ones(scaled.shape, bool) if kept is None else kept)
  for row, got in zip(scaled.astype(np.float64), kept, strict=True):
    order = np.argsort(-row)
    if top_k:
      order = order[:top_k]
    p = np.exp(row[order] - row.max())
    before = np.cumsum(p / p.sum()) - p / p.sum()
    # Rounding may move a token whose preceding mass is top_p itself.
    rows = list(zip(order, before, p, strict=True))
    surely = {t for t, b, q in rows if b < top_p - 1e-5 and q > max(min_p + 1e-5, 0)}
    maybe = {t for t, b, q in rows if b < top_p + 1e-5 and q >= min_p - 1e-5}
    chosen = set(np.flatnonzero(got))
    assert surely <= chosen <= maybe
  mass = np.asarray(kept_mass(scaled, kept))
  assert ((mass > 0) & (mass <= 1)).all()


def test_ties_are_kept_together_and_leading_axes_are_free():
  logits = np.zeros((2, 3, 4), np.float32)
  logits[..., 0] = 1
  kept = support(logits, top_k=2)
  assert np.asarray(kept).all() and kept.shape == (2, 3, 4)
  tokens = kept_tokens(logits, kept, 6)
  np.testing.assert_array_equal(tokens[0, 0], [0, 1, 2, 3, -1, -1])


@pytest.mark.parametrize(
  ("logprobs", "mass"), [("raw", True), ("processed", True), ("processed", False)]
)
def test_top_tokens_are_of_the_law_that_was_drawn_from(logprobs, mass):
  """Renormalised over the set where it is known, over all tokens where it is not."""
  raw = np.log(np.array([[0.5, 0.25, 0.125, 0.125]] * 2))
  kept = np.array([[True, True, False, False]] * 2)
  recorded = raw.copy()
  if logprobs == "processed":
    recorded = np.where(kept, raw - np.log(0.75), -np.inf)
  tokens = np.array([[3, 1, 0, 2]] * 2)
  tokens = np.where(recorded > -np.inf, tokens, -1)
  tokens[:, 3], recorded[:, 3] = -1, -np.inf  # padding
  found = comparable_top(
    Sampling(top_p=0.7, logprobs=logprobs),
    recorded,
    tokens,
    kept_mass=np.float32([0.75, 0.75]) if mass else None,
    kept_tokens=np.array([[3, 1, -1], [-1, -1, -1]]),
  )
  inside = [0.5 / 0.75, 0.25 / 0.75, 0, 0]
  # The second set did not fit: both sides are over all tokens, if the mass is known.
  rest = {"raw": [0.5, 0.25, 0.125, 0], "processed": [0.5, 0.25, 0, 0]}[logprobs]
  if not mass:
    rest = inside
  np.testing.assert_allclose(np.exp(found), [inside, rest], rtol=1e-6)
