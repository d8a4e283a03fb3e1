"""Score centering: what the sampler expects of the score, taken out of the update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.numerics.checks import as_floats, check_shape
from tis_jax.numerics.metrics import Metrics, fraction, mean

_LEAST_TAIL = 1e-6
"""Less than this outside the head is rounding of fp32 sums."""


def score_centering(
  top_logp: ArrayLike,
  top_sampler_logp: ArrayLike,
  advantages: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  law: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, Metrics]:
  """The term that centres a weighted policy gradient, per token.

  Added to `-A f log p(token)`, f the weight, it makes the gradient of a token
  `A (f s - mu)`, with `s = grad log p` and mu the mean of `f s` under the sampler, so
  that the update has mean 0 where the advantage says nothing about the token. The two
  laws p (learner) and q (sampler) are known on a head of K tokens; outside of it q is
  taken to be proportional to p:

    loss = A sum_{v in head} sg(q_v f(p_v, q_v) - a f(tail) p_v) log p_v
    a    = (1 - Q) / (1 - P),   P, Q the mass of the head under p and q

  for `mu = sum_head q f s + a f(tail) sum_tail p s`, and `sum p s` over all tokens is
  0. A tail token has the ratio `1 / a`, and no more probability than the rarest of the
  head: a law that looks at more than the ratio is asked with that of q. A head of the
  whole vocabulary, or of all that truncated sampling kept under a learner renormalised
  over it, is exact. With f the plain token ratio mu is 0 (exactly, whatever the head).

  Args:
    top_logp: `[B, T, K]` the learner's log-probs of the head's tokens, in nats;
      carries the gradient. `token_logprobs(..., candidates=ids)` has them.
    top_sampler_logp: `[B, T, K]` the sampler's, of the same tokens, under the law that
      it drew from; -inf is padding. The most probable ones, in any order.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1, the places that are centred: also those whose token a
      correction rejected, since it might have drawn another.
    law: `f(logp, sampler_logp) -> [..., K]`, the weight of each token, such as
      `corrections.token_law(chain)`. None weighs all tokens by 1.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> p, q = jnp.array([[[0.6, 0.4]]]), jnp.array([[[0.5, 0.5]]])
  >>> logits = jnp.log(p)
  >>> def loss(logits):
  ...   logp = jax.nn.log_softmax(logits)
  ...   return score_centering(logp, jnp.log(q), jnp.ones(1))[0].sum()
  >>> jax.grad(loss)(logits).round(4)  # q - p
  Array([[[-0.1,  0.1]]], dtype=float32)

  References: Marek and Ryabinin 2026, arXiv:2609.20807, with the proportional tail.
  """
  top_logp = as_floats("top_logp", top_logp)
  check_shape("top_sampler_logp", top_sampler_logp, top_logp.shape)
  # Only the shape of one token's log-probs is read of the first.
  mask, advantages, _ = policy_inputs(mask, advantages, logp=top_logp[..., 0])
  sampler = jax.lax.stop_gradient(as_floats("top_sampler_logp", top_sampler_logp))
  # A token that the learner rules out has a log-prob that nothing moves.
  there = mask[..., None] & (sampler > -jnp.inf) & (top_logp != -jnp.inf)
  logp = jnp.where(there, top_logp, 0.0)
  fixed = jax.lax.stop_gradient(logp)
  sampler = jnp.where(there, sampler, 0.0)
  p, q = (jnp.where(there, jnp.exp(x), 0.0) for x in (fixed, sampler))
  learner_mass, sampler_mass = p.sum(axis=-1), q.sum(axis=-1)
  log_a = jnp.log(jnp.maximum(1.0 - sampler_mass, _LEAST_TAIL))
  log_a -= jnp.log(jnp.maximum(1.0 - learner_mass, _LEAST_TAIL))
  tail = jnp.exp(log_a)
  weight = jnp.ones_like(p)
  if law is not None:
    rarest = jnp.min(sampler, axis=-1, where=there, initial=0.0)
    tail_sampler = jnp.minimum(rarest, jnp.minimum(log_a, 0.0))
    asked = jnp.stack([tail_sampler - log_a, tail_sampler], axis=0)[..., None]
    of_head = jnp.where(there, sampler, -jnp.inf)
    found = law(
      jnp.concatenate([fixed, asked[0]], axis=-1),
      jnp.concatenate([of_head, asked[1]], axis=-1),
    )
    found = jax.lax.stop_gradient(found)
    weight, tail = found[..., :-1], tail * found[..., -1]
  coefficient = jnp.where(there, q * weight - tail[..., None] * p, 0.0)
  token_loss = advantages * (coefficient * logp).sum(axis=-1)
  metrics: Metrics = {
    "centering/sampler_mass": mean(sampler_mass, mask),
    "centering/learner_mass": mean(learner_mass, mask),
    "centering/missing": fraction(~there.any(axis=-1), mask),
  }
  return token_loss, metrics
