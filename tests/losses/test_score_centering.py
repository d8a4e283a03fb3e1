"""Score centering against its formula in float64, with the tail written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tis_jax import corrections
from tis_jax.compat import prime_rl
from tis_jax.losses import reinforce, score_centering
from tis_jax.numerics.metrics import finalize

B, T, V = 8, 3, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, T, V))
SAMPLER = LOGITS + 0.7 * RNG.normal(size=LOGITS.shape)
ADVANTAGES = RNG.normal(size=(B, T))
MASK = RNG.random((B, T)) < 0.8
LAWS = {
  "none": (None, lambda r: np.ones_like(r)),
  "tis": (corrections.presets.tis(1.3), lambda r: np.minimum(r, 1.3)),
  "icepop": (
    corrections.presets.icepop(1.4, 0.6),
    lambda r: r * ((r >= 0.6) & (r <= 1.4)),
  ),
  "is": (corrections.chain(corrections.importance("token")), lambda r: r),
}


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


P, Q = softmax(LOGITS), softmax(SAMPLER)
HEAD = np.argsort(-SAMPLER, axis=-1)


def gradient(logits, width, law, *, sampler=Q, mask=MASK, advantages=ADVANTAGES):
  """Of the term, in the logits."""
  ids = HEAD[..., :width]
  q = np.take_along_axis(sampler, ids, -1)

  def term(logits):
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, -1)
    rule = None if law is None else corrections.token_law(law)
    return score_centering(
      logp, np.log(q).astype(np.float32), np.float32(advantages), mask, law=rule
    )[0].sum()

  return np.asarray(jax.grad(term)(np.float32(logits)), np.float64)


def expected(width, f):
  """`A mu`, mu the mean of `f(p/q) s` over the sampler's head and a tail like p."""
  inside = np.zeros((B, T, V), bool)
  np.put_along_axis(inside, HEAD[..., :width], True, -1)
  mass = lambda x: np.where(inside, x, 0).sum(-1, keepdims=True)
  alpha = (1 - mass(Q)) / np.maximum(1 - mass(P), 1e-300)
  q = np.where(inside, Q, alpha * P)
  np.testing.assert_allclose(q.sum(-1), 1)
  weighed = q * f(P / q)
  mu = weighed - weighed.sum(-1, keepdims=True) * P  # sum_v w_v (onehot_v - p)
  return np.where(MASK, ADVANTAGES, 0)[..., None] * mu


@pytest.mark.parametrize("width", [1, 3, 5, V])
@pytest.mark.parametrize("name", LAWS)
def test_the_gradient_is_the_samplers_mean_score(name, width):
  law, f = LAWS[name]
  found = gradient(LOGITS, width, law)
  np.testing.assert_allclose(found, expected(width, f), rtol=1e-4, atol=2e-6)
  if name == "is":
    np.testing.assert_allclose(found, 0, atol=2e-6)
  else:
    assert np.abs(found).max() > 0.01


@pytest.mark.parametrize("name", ["none", "tis", "icepop", "kpop"])
def test_a_centred_update_has_mean_zero_under_the_sampler(name):
  law = corrections.presets.kpop(0.05) if name == "kpop" else LAWS[name][0]
  logits = LOGITS[:1, :1]
  weights = np.ones(V)
  if law is not None:
    found = corrections.token_law(law)(np.log(P[:1, :1]), np.log(Q[:1, :1]))
    weights = np.asarray(found[0, 0])
  plain = np.zeros(V)
  for token in range(V):
    loss = lambda x, token=token: reinforce(jax.nn.log_softmax(x)[..., token], [1.0])
    slope = jax.grad(lambda x, loss=loss: loss(x)[0].sum())(np.float32(logits))
    plain += Q[0, 0, token] * weights[token] * np.asarray(slope[0, 0])
  one = np.ones((1, 1))
  HEAD_1 = HEAD[:1, :1]
  q = np.take_along_axis(Q[:1, :1], HEAD_1, -1)

  def term(x):
    logp = jnp.take_along_axis(jax.nn.log_softmax(x), HEAD_1, -1)
    rule = None if law is None else corrections.token_law(law)
    return score_centering(logp, np.log(q), one, law=rule)[0].sum()

  centre = np.asarray(jax.grad(term)(np.float32(logits)))[0, 0]
  assert np.abs(plain).max() > 0.01
  np.testing.assert_allclose(plain + centre, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "tis", "is"])
def test_a_tail_that_is_rounding_moves_nothing(name):
  """The head has all of it but 1e-12: what is left is not divided by itself."""
  law, f = LAWS[name]
  rng = np.random.default_rng(2)
  logits, sampler = rng.normal(size=(2, 100, 1, 6))
  logits[..., -1] = sampler[..., -1] = -30.0
  p, q = softmax(logits), softmax(sampler)

  def term(x):
    logp = jax.nn.log_softmax(x)[..., :-1]
    rule = None if law is None else corrections.token_law(law)
    return score_centering(logp, np.log(q[..., :-1]), np.ones(100), law=rule)[0].sum()

  found = jax.grad(term)(np.float32(logits))
  weighed = q * f(p / q)
  want = weighed - weighed.sum(-1, keepdims=True) * p
  np.testing.assert_allclose(found, want, atol=3e-6)


def test_garbage_reaches_neither_value_nor_gradient():
  law = corrections.token_law(LAWS["tis"][0])
  logp = np.log(np.take_along_axis(P, HEAD[..., :3], -1)).astype(np.float32)
  sampler = np.log(np.take_along_axis(Q, HEAD[..., :3], -1)).astype(np.float32)
  sampler[..., 2] = -np.inf  # padding
  clean_logp = logp.copy()
  clean_logp[..., 2] = -1.0
  run = jax.value_and_grad(
    lambda x, q, a, m: score_centering(x, q, a, m, law=law)[0].sum()
  )
  want = run(clean_logp, sampler, np.float32(ADVANTAGES), MASK)
  for fill in (np.nan, np.inf, -np.inf, 1e30):
    dirty, dirty_sampler, advantages = logp.copy(), sampler.copy(), ADVANTAGES.copy()
    dirty[..., 2] = fill
    dirty[~MASK], dirty_sampler[~MASK], advantages[~MASK] = fill, fill, fill
    found = run(dirty, dirty_sampler, np.float32(advantages), MASK)
    np.testing.assert_array_equal(found[0], want[0])
    np.testing.assert_array_equal(found[1], want[1])
  # What the learner rules out, nothing moves.
  logp[0, 0, 0] = -np.inf
  assert np.isfinite(run(logp, sampler, np.float32(ADVANTAGES), MASK)[1]).all()


def test_the_metrics_say_how_much_the_head_holds():
  logp, sampler = (
    np.log(np.take_along_axis(x, HEAD[..., :2], -1)).astype(np.float32) for x in (P, Q)
  )
  sampler[0] = -np.inf
  _, metrics = score_centering(logp, sampler, np.ones(B), MASK)
  found = finalize(metrics)
  q = np.exp(sampler.astype(np.float64)).sum(-1)
  np.testing.assert_allclose(found["centering/sampler_mass"], q[MASK].mean(), rtol=1e-5)
  share = MASK[0].sum() / MASK.sum()
  np.testing.assert_allclose(found["centering/missing"], share, rtol=1e-6)


def test_prime_rls_centering_over_the_whole_vocabulary_is_this_one():
  eps, cap = 0.1, 1.5
  fn = prime_rl.policy_loss(
    {"type": "ipo", "eps": eps, "max_importance_ratio": cap, "score_centering": True}
  )
  plain = prime_rl.policy_loss({"type": "ipo", "eps": eps, "max_importance_ratio": cap})
  sampler = np.log(Q).astype(np.float32)
  advantages = np.float32(ADVANTAGES)

  def theirs(x):
    logp = jax.nn.log_softmax(x)
    pair = logp[..., 0], sampler[..., 0], advantages, MASK
    centred = fn(*pair, support_logp=logp, sampler_support_logp=sampler)[0]
    return centred - plain(*pair)[0]

  law = corrections.chain(
    corrections.reject_probability_difference(eps), corrections.truncate(cap)
  )
  found = gradient(LOGITS, V, law) / MASK.sum()
  want = jax.grad(theirs)(np.float32(LOGITS))
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_single(kind):
  law = corrections.token_law(LAWS["tis"][0])
  run = jax.jit(
    jax.value_and_grad(lambda x, q, a, m: score_centering(x, q, a, m, law=law)[0].sum())
  )
  cut = functools.partial(np.take_along_axis, indices=HEAD[..., :3], axis=-1)
  arrays = *(np.float32(np.log(cut(x))) for x in (P, Q)), np.float32(ADVANTAGES), MASK
  want = run(*arrays)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
  with jax.set_mesh(mesh):
    sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
    found = run(*sharded)
  np.testing.assert_allclose(found[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(found[1], want[1], rtol=1e-5, atol=1e-7)


def test_a_head_of_another_shape_is_refused():
  with pytest.raises(ValueError, match="top_sampler_logp must have shape"):
    score_centering(np.zeros((1, 2, 3)), np.zeros((1, 2, 4)), np.ones(1))
