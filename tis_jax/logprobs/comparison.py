"""Recorded log-probs, made comparable; the table of what can be is in `contract`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.logprobs.contract import Sampling, agree
from tis_jax.numerics.arrays import Array


class Comparable(NamedTuple):
  """Sampler log-probs that the learner's may be subtracted from.

  Attributes:
    sampler_logp: fp32, the shape of the record's.
    present: bool; False where the record does not allow a comparison (the token's kept
      set did not fit, and no mass was recorded).
    exact: bool; False where the ratio is off by M' / M.
  """

  sampler_logp: jax.Array
  present: jax.Array
  exact: jax.Array


def comparable(
  sampling: Sampling,
  sampler_logp: Array,
  *,
  kept_mass: Array | None = None,
  kept_tokens: Array | None = None,
  exact: bool = False,
) -> Comparable:
  """Recorded log-probs, made comparable with the learner's.

  The learner's are `token_logprobs(..., temperature=sampling.temperature)`, with
  `kept_tokens=` this record's where `agree(...).processed`.

  Args:
    sampling: how the tokens were drawn; any object with the attributes of `Sampling`.
    sampler_logp: `[...]` as recorded, nats.
    kept_mass: `[...]` M as recorded, in (0, 1]; anything where nothing was sampled.
    kept_tokens: `[..., K]` as recorded, padded with -1, all -1 where a set did not fit.
    exact: refuse what is only approximate.

  Returns:
    `Comparable`. Where a kept set did not fit, both sides are over all tokens (exact is
    False), or the token is not present when the mass is not recorded either.

  Raises:
    ValueError: as `agree`.

  >>> import jax.numpy as jnp
  >>> nucleus = Sampling(top_p=0.8, logprobs="processed")
  >>> out = comparable(nucleus, jnp.log(jnp.array([0.625])),
  ...                  kept_mass=jnp.array([0.8]))
  >>> round(float(jnp.exp(out.sampler_logp[0])), 4)  # the raw probability
  0.5
  """
  sampler_logp = jnp.asarray(sampler_logp, jnp.float32)
  agreed = agree(
    sampling,
    kept_mass=kept_mass is not None,
    kept_tokens=kept_tokens is not None,
    exact=exact,
  )
  everywhere = jnp.ones(sampler_logp.shape, bool)
  log_mass = 0.0
  if kept_mass is not None:
    log_mass = jnp.log(kept_mass.astype(jnp.float32))
  if not agreed.processed or kept_tokens is None:
    shift = agreed.log_mass * log_mass if agreed.log_mass else 0.0
    return Comparable(sampler_logp + shift, everywhere, everywhere & agreed.exact)

  fits = jnp.any(kept_tokens >= 0, axis=-1)
  if agreed.log_mass:  # recorded raw, and the learner's is processed where the set fits
    return Comparable(sampler_logp - jnp.where(fits, log_mass, 0.0), everywhere, fits)
  if kept_mass is None:
    return Comparable(sampler_logp, fits, fits)
  return Comparable(sampler_logp + jnp.where(fits, 0.0, log_mass), everywhere, fits)


def comparable_top(
  sampling: Sampling,
  top_logp: Array,
  top_tokens: Array,
  *,
  kept_mass: Array | None = None,
  kept_tokens: Array | None = None,
) -> jax.Array:
  """Recorded log-probs of the most probable tokens, under the law that was drawn from.

  As `comparable` has them: renormalised over the kept set where the learner is, without
  the tokens that sampling dropped.

  Args:
    sampling: how the tokens were drawn; any object with the attributes of `Sampling`.
    top_logp: `[..., K]` as recorded, nats; -inf is padding.
    top_tokens: `[..., K]` which those are, padded with -1.
    kept_mass: `[...]` as recorded.
    kept_tokens: `[..., M]` as recorded.

  Returns:
    `[..., K]` fp32, -inf for what could not be drawn.

  Raises:
    ValueError: as `agree`.

  >>> import jax.numpy as jnp
  >>> top = jnp.log(jnp.array([[0.5, 0.3, 0.1]]))
  >>> out = comparable_top(
  ...   Sampling(top_p=0.8), top, jnp.array([[4, 2, 7]]),
  ...   kept_mass=jnp.array([0.8]), kept_tokens=jnp.array([[4, 2, -1]]))
  >>> jnp.exp(out).round(4).tolist()
  [[0.625, 0.375, 0.0]]
  """
  top_logp = jnp.asarray(top_logp, jnp.float32)
  given = {"kept_mass": kept_mass is not None, "kept_tokens": kept_tokens is not None}
  agreed = agree(sampling, **given)
  held = top_tokens >= 0
  shift = 0.0
  if agreed.log_mass and kept_mass is not None:
    shift = agreed.log_mass * jnp.log(kept_mass.astype(jnp.float32))[..., None]
  if not agreed.processed or kept_tokens is None:
    return jnp.where(held, top_logp + shift, -jnp.inf)
  fits = jnp.any(kept_tokens >= 0, axis=-1, keepdims=True)
  inside = jnp.any(top_tokens[..., :, None] == kept_tokens[..., None, :], axis=-1)
  # Where the set did not fit both sides are over all tokens.
  if agreed.log_mass:
    shift = jnp.where(fits, shift, 0.0)
  elif kept_mass is not None:
    mass = jnp.log(kept_mass.astype(jnp.float32))[..., None]
    shift = jnp.where(fits, 0.0, mass)
  return jnp.where(held & (inside | ~fits), top_logp + shift, -jnp.inf)
