"""A step with score centering against the step written out over the vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import VERSION, advantages, distributions, make_algorithm

from tis_jax import learner
from tis_jax.corrections import chain, reject
from tis_jax.engines import NativeEngine
from tis_jax.logprobs import Sampling

VOCAB = 20


@pytest.fixture(scope="module")
def drawn(tiny, batch):
  """The batch with log-probs and top tokens of a sampler that is off: `drawn(k)`."""
  rng = np.random.default_rng(8)
  rows = np.float64(distributions(tiny.graph, tiny.params, batch))
  rows = rows + 0.5 * rng.normal(size=rows.shape)
  rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
  order = np.argsort(-rows, -1)
  taken = np.take_along_axis(rows, batch.tokens[..., None], -1)[..., 0]

  def drawn(k):
    ids = order[..., :k].astype(np.int32)
    logp = np.take_along_axis(rows, order[..., :k], -1)
    # Garbage where nothing was sampled.
    held = batch.mask[..., None]
    return rows, batch._replace(
      sampler_logp=np.where(batch.mask, taken, np.nan).astype(np.float32),
      top_tokens=np.where(held, ids, -7).astype(np.int32),
      top_logp=np.where(held, logp, np.nan).astype(np.float32),
    )

  return drawn


def softmax(rows):
  return np.exp(rows - np.log(np.exp(rows).sum(-1, keepdims=True)))


def expected_step(tiny, batch, sampler_rows, k, f, accepted=None, support=None):
  """`(params, gradient norm)` of the centred step, the tail written out."""
  inside = np.ones((*batch.mask.shape, VOCAB), bool) if support is None else support
  off = np.where(inside, 0.0, -1e30)

  def laws(params):
    rows = distributions(tiny.graph, params, batch) + off
    return rows - jax.nn.logsumexp(rows, axis=-1, keepdims=True)

  p, q = np.exp(np.float64(laws(tiny.params))), softmax(sampler_rows + off)
  top = np.zeros_like(inside)
  order = np.argsort(-q, -1)[..., :k]
  np.put_along_axis(top, order, True, -1)
  mass = lambda x: np.where(top, x, 0).sum(-1, keepdims=True)
  tail = (1 - mass(q)) / np.maximum(1 - mass(p), 1e-300)
  known = np.where(top, q, np.where(inside, tail * p, 0))
  ratio = np.where(inside, p / np.where(inside, known, 1), 0)
  centre = known * f(ratio)
  taken = np.take_along_axis(p / np.where(inside, q, 1), batch.tokens[..., None], -1)
  one = np.arange(VOCAB) == batch.tokens[..., None]
  mask = batch.mask if accepted is None else accepted
  scale = np.where(mask, advantages(batch)[:, None] / batch.mask.sum(), 0.0)
  coefficient = scale[..., None] * (np.where(one, f(taken), 0) - centre)

  def loss(params):
    rows = jnp.where(inside, laws(params), 0.0)
    return -(coefficient.astype(np.float32) * rows).sum()

  gradients = jax.jit(jax.grad(loss))(tiny.params)
  norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
  moves, _ = tiny.optimizer.update(
    gradients, tiny.optimizer.init(tiny.params), tiny.params
  )
  return jax.tree.map(jnp.add, tiny.params, moves), norm


def same_step(found, metrics, want):
  params, norm = want
  np.testing.assert_allclose(metrics["optimizer/grad_norm"], norm, rtol=1e-4)
  for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


CAPPED = lambda r: np.minimum(r, 0.8)
TIS = {"correction__stages": ("truncate",), "correction__truncate__high": 0.8}
NONE = {"correction__stages": ()}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("k", "f", "mesh", "settings"),
  [
    (VOCAB, np.ones_like, "one", NONE),
    (5, CAPPED, "one", TIS | {"old_logp": "current", "micro_batches": 2}),
    (5, CAPPED, "one", TIS | {"loss__name": "cispo"}),
    (5, CAPPED, "2x2x2", TIS),
    (5, CAPPED, "one", TIS | {"loss__name": "reinforce", "old_logp": "sampler"}),
  ],
)
def test_a_centred_step_is_the_one_written_out(tiny, drawn, k, f, mesh, settings):
  rows, batch = drawn(k)
  found, metrics = tiny.step(batch, mesh, score_centering=True, **settings)
  want = expected_step(tiny, batch, rows, k, f)
  same_step(found, metrics, want)
  mass = np.exp(np.float64(batch.top_logp))[batch.mask].sum(-1).mean()
  np.testing.assert_allclose(metrics["centering/sampler_mass"], mass, rtol=1e-5)
  assert metrics["centering/missing"] == 0


def test_centring_moves_the_step(tiny, drawn):
  _, batch = drawn(5)
  plain, _ = tiny.step(batch, **TIS)
  found, _ = tiny.step(batch, "2x2x2", score_centering=True, **TIS)
  pairs = zip(jax.tree.leaves(plain.params), jax.tree.leaves(found.params), strict=True)
  assert max(np.abs(a - b).max() for a, b in pairs) > 1e-4


def test_a_rejected_sequence_is_not_centred_and_a_rejected_token_is(tiny, drawn):
  rows, batch = drawn(6)
  correct = chain(reject(1.25, level="geometric"), reject(1.5, 0.0, level="token"))
  algorithm = dataclasses.replace(
    make_algorithm(), correct=correct, score_centering=True
  )
  update = learner.make_update(
    tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"]
  )
  out = update(tiny.state(), batch, np.int32(VERSION))
  found, metrics = jax.device_get(out)
  old = np.float64(distributions(tiny.graph, tiny.params, batch))
  old = np.take_along_axis(old, batch.tokens[..., None], -1)[..., 0]
  d = np.where(batch.mask, old - np.float64(batch.sampler_logp), 0)
  mean = np.exp(d.sum(1) / np.maximum(batch.mask.sum(1), 1))
  rows_in = (mean <= 1.25) & (mean >= 0.8)
  accepted = batch.mask & rows_in[:, None]
  assert 0 < accepted.sum() < batch.mask.sum()
  want = expected_step(
    tiny, batch, rows, 6, lambda r: (r <= 1.5).astype(float), accepted=accepted
  )
  same_step(found, metrics, want)


@pytest.fixture(scope="module")
def nucleus(tiny):
  """Answers of a sharper policy under top-p, with what it kept and its top tokens."""
  sampling = Sampling(temperature=1.0, top_p=0.8)
  sharp = jax.tree.map(lambda x: 1.6 * x, tiny.params)
  engine = NativeEngine(
    tiny.graph, sampling, max_new_tokens=6, eos_ids=(1,), pad_id=0, kept_width=VOCAB,
    top_logprobs=VOCAB, precision="float32",
  )  # fmt: skip
  engine.update(sharp, version=VERSION)
  rng = np.random.default_rng(3)
  prompts = rng.integers(2, VOCAB, (8, 4)).astype(np.int32)
  given = np.ones(prompts.shape, bool)
  out = engine.generate(prompts, given, samples=4, key=jax.random.key(5))
  batch = learner.Batch(
    prompts=np.repeat(prompts, 4, axis=0),
    prompt_mask=np.repeat(given, 4, axis=0),
    rewards=rng.integers(0, 2, 32).astype(np.float32),
    group_ids=np.repeat(np.arange(8, dtype=np.int32), 4),
    **{n: x for n, x in out._asdict().items() if n in learner.Batch._fields},
  )
  return sampling, sharp, batch


@pytest.mark.slow
def test_under_top_p_the_kept_law_is_what_is_centred(tiny, nucleus):
  sampling, sharp, batch = nucleus
  support = (batch.kept_tokens[..., None, :] == np.arange(VOCAB)[:, None]).any(-1)
  support |= ~batch.mask[..., None]
  assert 1 < support[batch.mask].sum(-1).mean() < VOCAB
  rows = np.float64(distributions(tiny.graph, sharp, batch))
  algorithm = make_algorithm(score_centering=True, **TIS)
  update = learner.make_update(
    tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"], sampling=sampling
  )
  out = update(tiny.state(), batch, np.int32(VERSION))
  found, metrics = jax.device_get(out)
  want = expected_step(tiny, batch, rows, VOCAB, CAPPED, support=support)
  same_step(found, metrics, want)
  np.testing.assert_allclose(metrics["centering/sampler_mass"], 1.0, rtol=1e-5)
  np.testing.assert_allclose(metrics["centering/learner_mass"], 1.0, rtol=1e-5)


def test_what_does_not_record_the_top_tokens_is_refused(tiny, batch):
  update = tiny.update(score_centering=True)
  state = learner.abstract_state(tiny.graph, tiny.optimizer, tiny.meshes["one"])
  with pytest.raises(ValueError, match=r"recorded with sampler.top_logprobs"):
    jax.eval_shape(update, state, batch, np.int32(VERSION))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"loss__name": "gspo"}, "and gspo does more with it; take one of reinforce"),
    ({"loss__name": "dppo", "correction__stages": ()}, "and dppo does more"),
    (
      {"old_logp": "sampler", "correction__stages": ()},
      "with old_logp='sampler' ppo holds the ratio",
    ),
    ({"mini_batches": 2}, "make 2 updates under weights of the first"),
    ({"correction__truncate__level": "sequence"}, "truncate has no law of single"),
    (
      {"correction__stages": ("truncate", "normalize")},
      "normalize has no law of single tokens",
    ),
  ],
)
def test_what_cannot_be_centred_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    make_algorithm(score_centering=True, **settings)


def test_approximate_ratios_are_not_centred(tiny):
  algorithm = make_algorithm(score_centering=True, inexact="train")
  with pytest.raises(ValueError, match="inexact='train' goes without"):
    learner.make_update(
      tiny.graph, algorithm, tiny.optimizer, tiny.meshes["one"],
      sampling=Sampling(top_p=0.9),
    )  # fmt: skip
