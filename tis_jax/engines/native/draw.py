"""Drawing tokens, and what a record says of the draw.

Letters in names: B slots, V vocabulary, W tokens of a block, K room for tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.logprobs import Sampling, kept_mass, kept_tokens, support

_BLOCK = 256


class Law(NamedTuple):
  """How tokens are drawn, and how much of it is recorded.

  Attributes:
    temperature: divides the logits in fp32; 0 is greedy.
    top_k: tokens that may be drawn, see `tis_jax.logprobs.support`.
    top_p: probability mass that may be drawn.
    min_p: least probability that may be drawn, relative to the most probable token.
    kept_width: room for the ids of the tokens kept; 0 does not record them.
    top_logprobs: how many of the most probable tokens are recorded.
    routed_experts: whether it is recorded to which experts tokens are sent.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  kept_width: int = 0
  top_logprobs: int = 0
  routed_experts: bool = False

  @classmethod
  def of(cls, sampling: Sampling, **recorded) -> "Law":
    """The law that a record's header names, and what is recorded of it."""
    law = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return cls(*law, **recorded)


GREEDY = Law(temperature=0.0)
"""The most probable token, with nothing recorded."""


class Drawn(NamedTuple):
  """One token a slot; fields as those of `Generation`, None where not recorded.

  Attributes:
    tokens: int32 [B].
    sampler_logp: fp32 [B].
    kept_mass: fp32 [B].
    kept_tokens: int32 [B, K].
    top_tokens: int32 [B, K].
    top_logp: fp32 [B, K].
  """

  tokens: jax.Array
  sampler_logp: jax.Array
  kept_mass: jax.Array | None = None
  kept_tokens: jax.Array | None = None
  top_tokens: jax.Array | None = None
  top_logp: jax.Array | None = None


def draw(law: Law, logits_BV: jax.Array, keys_B: jax.Array) -> Drawn:
  """Draws a token a slot, and takes its log-prob under all tokens.

      logp = l[token] - logsumexp(l),   l = logits / temperature

  Args:
    law: how.
    logits_BV: fp32, finite.
    keys_B: PRNG keys.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> out = draw(Law(top_k=1), logits, jax.random.split(jax.random.key(0), 1))
    >>> int(out.tokens[0]), round(float(jnp.exp(out.sampler_logp[0])), 4)
    (0, 0.5)
  """
  peak_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  # The difference first, as in `logprobs_from_logits`: large logits cost no digits.
  scaled_BV = (logits_BV - peak_B1) / (law.temperature or 1.0)
  exp_BV = jnp.exp(scaled_BV)
  log_total_B = jnp.log(_blocks(exp_BV).sum(axis=-1).sum(axis=-1))
  kept_BV = support(scaled_BV, top_k=law.top_k, top_p=law.top_p, min_p=law.min_p)
  if kept_BV is None and law.top_k:
    # As many as there are: the record holds all of them, as of any other top-k.
    kept_BV = jnp.ones(scaled_BV.shape, bool)
  mass_B = ids_BK = top_ids_BK = top_logp_BK = None
  if kept_BV is not None:
    exp_BV = jnp.where(kept_BV, exp_BV, 0.0)
    mass_B = kept_mass(scaled_BV, kept_BV)
    if law.kept_width:
      ids_BK = kept_tokens(scaled_BV, kept_BV, law.kept_width)
  if law.temperature:
    token_B = inverse_cdf(exp_BV, keys_B)
  else:
    token_B = jnp.argmax(scaled_BV, axis=-1).astype(jnp.int32)
  logp_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=1)[:, 0] - log_total_B
  if law.top_logprobs:
    top_BK, top_ids_BK = jax.lax.top_k(scaled_BV, law.top_logprobs)
    top_logp_BK = top_BK - log_total_B[:, None]
    top_ids_BK = top_ids_BK.astype(jnp.int32)
  return Drawn(token_B, logp_B, mass_B, ids_BK, top_ids_BK, top_logp_BK)


@functools.cache
def blank(law: Law, vocab_size: int) -> Drawn:
  """One draw of this law, as shapes and dtypes."""
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  logits = jax.ShapeDtypeStruct((1, vocab_size), jnp.float32)
  return jax.eval_shape(functools.partial(draw, law), logits, key)


def inverse_cdf(exp_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of probability exp_BV / sum(exp_BV), by two uniforms a slot.

  The first chooses a block of 256 tokens by the sums of the blocks, the second a token
  in it: the first whose running sum exceeds u times the whole. It costs two short
  running sums, where one Gumbel number a token costs a hash of the whole vocabulary.

  Args:
    exp_BV: fp32, not negative, not all 0.
    keys_B: PRNG keys.

  Returns:
    int32 [B]; never a token of probability 0.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> inverse_cdf(jnp.tile(jnp.array([[0.0, 3.0, 0.0, 1.0]]), (4, 1)), keys).tolist()
    [1, 1, 3, 1]
  """
  blocks_BNW = _blocks(exp_BV)
  uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
  block_B = _first_above(blocks_BNW.sum(axis=-1), uniform_B2[:, :1])
  one_BW = jnp.take_along_axis(blocks_BNW, block_B[:, None, None], axis=1)[:, 0]
  token_B = _first_above(one_BW, uniform_B2[:, 1:])
  return block_B * blocks_BNW.shape[2] + token_B


def _blocks(exp_BV: jax.Array) -> jax.Array:
  """[B, N, W]: the tokens in blocks, the last one filled up with 0."""
  vocabulary = exp_BV.shape[-1]
  width = min(_BLOCK, vocabulary)
  exp_BV = jnp.pad(exp_BV, ((0, 0), (0, -vocabulary % width)))
  return exp_BV.reshape(exp_BV.shape[0], -1, width)


def _first_above(mass_BW: jax.Array, uniform_B1: jax.Array) -> jax.Array:
  """The first entry whose running sum exceeds u times the whole."""
  running_BW = jnp.cumsum(mass_BW, axis=-1)
  # Running sums that are added up in pairs may fall by a rounding, and then an entry of
  # 0 could pass for one.
  above_BW = (running_BW > uniform_B1 * running_BW[:, -1:]) & (mass_BW > 0)
  found_B = jnp.where(
    above_BW.any(axis=-1), jnp.argmax(above_BW, axis=-1), jnp.argmax(mass_BW, axis=-1)
  )
  return found_B.astype(jnp.int32)
