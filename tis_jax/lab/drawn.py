"""Batches drawn from laws over a whole vocabulary: every log-prob of them is exact."""

import numpy as np

from tis_jax.lab.enumerable import log_softmax
from tis_jax.lab.faults import Sampled
from tis_jax.numerics.checks import check_number

TEMPERATURES = (0.7, 0.9, 1.0, 1.2)
"""At which the learner scores a batch."""


def drawn(
  noise: float = 0.03,
  *,
  temperature: float = 1.0,
  top_p: float = 1.0,
  seed: int = 0,
  rows: int = 48,
  length: int = 40,
  vocab: int = 100,
) -> Sampled:
  """A batch of a sampler that is `noise` away from the learner, in the logits.

  At each place the learner's logits are normal with a spread of its own, exp of a
  normal of mean 0.7 and deviation 1: some places are certain and some are open, as in
  language. The sampler's have normal noise added, are divided by the temperature and,
  below `top_p` 1, cut to the nucleus; the tokens are drawn from that.

  Args:
    noise: standard deviation of what is added to the sampler's logits.
    temperature: that is sampled at, one of `TEMPERATURES`.
    top_p: mass of the nucleus.
    seed: of all of it.
    rows: B.
    length: T; a row has a quarter of it at least.
    vocab: V.

  Returns:
    The batch; its sampler's log-probs are over all tokens, `kept_mass` beside them, and
    `other_logp` is of logits that have nothing in common with the learner's.

  Raises:
    ValueError: a number outside its range.

  >>> batch = drawn(0.0, rows=4, length=8)
  >>> bool(np.allclose(batch.old_logp, batch.sampler_logp))
  True
  """
  check_number("noise", noise, at_least=0)
  check_number("top_p", top_p, above=0, at_most=1)
  if temperature not in TEMPERATURES:
    raise ValueError(f"temperature must be one of {TEMPERATURES}, got {temperature!r}")
  rng = np.random.default_rng(seed)
  shape = (rows, length, vocab)
  spread = np.exp(rng.normal(0.7, 1.0, (rows, length, 1)))
  logits, unlike = spread * rng.normal(size=shape), spread * rng.normal(size=shape)
  sampler = log_softmax((logits + noise * rng.normal(size=shape)) / temperature)
  kept = _nucleus(sampler, top_p)
  tokens = np.where(kept, sampler + rng.gumbel(size=shape), -np.inf).argmax(axis=-1)
  of = lambda law: np.take_along_axis(law, tokens[..., None], -1)[..., 0]
  at = {t: of(log_softmax(logits / t)) for t in TEMPERATURES}
  lengths = rng.integers(max(length // 4, 1), length + 1, rows)
  return Sampled(
    old_logp=at[temperature],
    sampler_logp=of(sampler),
    mask=np.arange(length) < lengths[:, None],
    tokens=tokens + 2,
    versions=np.full((rows, length), 7),
    learner_version=7,
    temperature=temperature,
    at=at,
    kept_mass=np.where(kept, np.exp(sampler), 0.0).sum(axis=-1),
    other_logp=of(log_softmax(unlike)),
  )


def _nucleus(logp: np.ndarray, top_p: float) -> np.ndarray:
  """Bool of the shape of `logp`: the fewest tokens whose mass reaches `top_p`."""
  kept = np.ones(logp.shape, bool)
  if top_p < 1:
    order = np.argsort(-logp, axis=-1)
    mass = np.take_along_axis(np.exp(logp), order, -1).cumsum(axis=-1)
    before = np.concatenate([np.zeros((*mass.shape[:-1], 1)), mass[..., :-1]], axis=-1)
    np.put_along_axis(kept, order, before < top_p, -1)
  return kept
