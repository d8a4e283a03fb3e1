"""Which tokens sampling may choose from: top-k, then top-p of those, then min-p."""

import jax
import jax.numpy as jnp

from tis_jax.logprobs.contract import check_rules
from tis_jax.numerics.selection import largest, order_preserving_bits


def support(
  scaled: jax.Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> jax.Array | None:
  """The tokens that top-k, top-p and min-p keep.

      kept = scaled >= max(k-th largest, last of the nucleus, largest + log(min_p))

  Each rule is a threshold on the logit, so tokens that tie at it are kept together:

  - top-k: the k-th largest logit;
  - top-p: the last logit of the shortest run of most probable tokens that has at least
    the mass `top_p`, of the distribution renormalised after top-k;
  - min-p: the largest logit + log(min_p).

  Args:
    scaled: `[..., V]` logits, divided by the temperature.
    top_k: tokens kept, 0 for all.
    top_p: mass kept, in (0, 1]; 1 for all.
    min_p: least probability relative to the most probable token, in [0, 1); 0 for all.

  Returns:
    `[..., V]` bool; None when every rule keeps everything.

  Raises:
    ValueError: a number outside its range.

  >>> import jax.numpy as jnp
  >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  >>> support(logits, top_p=0.8).astype(int)
  Array([[1, 1, 0, 0]], dtype=int32)
  >>> support(logits, top_k=3, top_p=0.9, min_p=0.5).astype(int)
  Array([[1, 1, 0, 0]], dtype=int32)

  Reference: nucleus sampling, Holtzman et al. 2019 (arXiv 1904.09751); min-p, Nguyen et
  al. 2024 (arXiv 2407.01082). Engines differ in the order: Hugging Face `transformers`
  has this one.
  """
  check_rules(top_k, top_p, min_p)
  scaled = scaled.astype(jnp.float32)
  thresholds = []
  if 0 < top_k < scaled.shape[-1]:
    thresholds.append(jax.lax.top_k(scaled, top_k)[0][..., -1:])
  if top_p < 1:
    considered = scaled
    if thresholds:
      considered = jnp.where(scaled >= thresholds[0], scaled, -jnp.inf)
    thresholds.append(_last_of_nucleus(considered, top_p))
  if min_p > 0:
    peak = jnp.max(scaled, axis=-1, keepdims=True)
    thresholds.append(peak + jnp.log(jnp.float32(min_p)))
  if not thresholds:
    return None
  highest = jnp.max(jnp.concatenate(thresholds, axis=-1), axis=-1, keepdims=True)
  # A token of probability 0 is never kept, whatever the threshold.
  return (scaled >= highest) & (scaled > -jnp.inf)


def _last_of_nucleus(scaled: jax.Array, top_p: float) -> jax.Array:
  """The largest logit at and above which there is the mass `top_p`, `[..., 1]`.

  Found bit by bit, by 32 sums over the vocabulary: on a CPU a sort takes several times
  as long, and on a mesh it would have to gather a split vocabulary.
  """
  rank = order_preserving_bits(scaled)
  mass = jax.nn.softmax(scaled, axis=-1)

  def enough(threshold):
    inside = jnp.where(rank >= threshold, mass, 0.0)
    return jnp.sum(inside, axis=-1, keepdims=True) >= top_p

  shape = (*scaled.shape[:-1], 1)
  lowest = largest(enough, jnp.uint32, bits=32, shape=shape)
  return jnp.min(scaled, axis=-1, keepdims=True, where=rank >= lowest, initial=jnp.inf)


def kept_mass(scaled: jax.Array, kept: jax.Array) -> jax.Array:
  """Probability of the kept tokens before the others are dropped.

      M = sum_{v kept} softmax(scaled)_v,   log mu(v) = log softmax(scaled)_v - log M

  Args:
    scaled: `[..., V]` logits, divided by the temperature.
    kept: `[..., V]` bool.

  Returns:
    `[...]` fp32 in (0, 1].

  >>> import jax.numpy as jnp
  >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  >>> round(float(kept_mass(logits, support(logits, top_p=0.8))[0]), 4)
  0.8
  """
  scaled = scaled.astype(jnp.float32)
  inside = jax.nn.logsumexp(jnp.where(kept, scaled, -jnp.inf), axis=-1)
  return jnp.minimum(jnp.exp(inside - jax.nn.logsumexp(scaled, axis=-1)), 1.0)


def kept_tokens(scaled: jax.Array, kept: jax.Array, width: int) -> jax.Array:
  """Ids of the kept tokens, for the record: all of them, or none.

  A set that does not fit is left out whole, since a part of it would pass for a smaller
  support.

  Args:
    scaled: `[..., V]` logits, divided by the temperature.
    kept: `[..., V]` bool.
    width: room for a set.

  Returns:
    `[..., width]` int32, most probable first, padded with -1; all -1 where more than
    `width` tokens are kept.

  >>> import jax.numpy as jnp
  >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]))
  >>> kept_tokens(logits, support(logits, top_p=0.8), 2)
  Array([[ 1,  2],
         [-1, -1]], dtype=int32)
  """
  inside = jnp.where(kept, scaled.astype(jnp.float32), -jnp.inf)
  values, tokens = jax.lax.top_k(inside, min(width, scaled.shape[-1]))
  fits = jnp.sum(kept, axis=-1, keepdims=True) <= width
  tokens = jnp.where(fits & (values > -jnp.inf), tokens.astype(jnp.int32), -1)
  spare = width - tokens.shape[-1]
  return jnp.pad(
    tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, spare)], constant_values=-1
  )
