"""Batches drawn from laws over a whole vocabulary: every log-prob is exact."""

import numpy as np

from tis_jax.lab.faults import Sampled

TEMPERATURES = (0.7, 0.9, 1.0, 1.2)


def log_softmax(logits):
  top = logits.max(axis=-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def drawn(
  noise=0.03, *, temperature=1.0, top_p=1.0, seed=0, rows=48, length=40, vocab=200
) -> Sampled:
  """A learner's law, a sampler's that is `noise` away in the logits, and its tokens."""
  rng = np.random.default_rng(seed)
  sharpness = np.exp(rng.normal(0.7, 1.0, (rows, length, 1)))
  logits = sharpness * rng.normal(size=(rows, length, vocab))
  other = sharpness * rng.normal(size=(rows, length, vocab))
  sampler = log_softmax((logits + noise * rng.normal(size=logits.shape)) / temperature)
  kept = np.ones(sampler.shape, bool)
  if top_p < 1:
    order = np.argsort(-sampler, axis=-1)
    mass = np.take_along_axis(np.exp(sampler), order, -1).cumsum(-1)
    inside = np.concatenate(
      [np.ones((rows, length, 1), bool), mass[..., :-1] < top_p], -1
    )
    np.put_along_axis(kept, order, inside, -1)
  gumbel = rng.gumbel(size=sampler.shape)
  tokens = np.where(kept, sampler + gumbel, -np.inf).argmax(axis=-1)
  of = lambda law: np.take_along_axis(law, tokens[..., None], -1)[..., 0]
  lengths = rng.integers(length // 4, length + 1, rows)
  at = {t: of(log_softmax(logits / t)) for t in TEMPERATURES}
  return Sampled(
    old_logp=at[temperature],
    sampler_logp=of(sampler),
    mask=np.arange(length) < lengths[:, None],
    tokens=tokens + 2,
    versions=np.full((rows, length), 7),
    learner_version=7,
    temperature=temperature,
    at=at,
    kept_mass=np.where(kept, np.exp(sampler), 0).sum(axis=-1),
    other_logp=of(log_softmax(other)),
  )
