"""What a log-prob call returns."""

from typing import NamedTuple

import jax


class TopK(NamedTuple):
  """The most probable tokens of each position, most probable first. No gradient.

  Attributes:
    logp: `[..., k]` fp32, in nats.
    tokens: `[..., k]` int32 token ids.
  """

  logp: jax.Array
  tokens: jax.Array


class TokenLogprobs(NamedTuple):
  """The readings of one pass over the vocabulary, all fp32 and in nats.

  Attributes:
    logp: `[...]`, log-probability of the target token.
    entropy: `[...]`, entropy of the whole distribution; None when not asked for.
    log_normalizer: `[...]`, logsumexp of the logits after soft-cap, bias and
      temperature.
    top_k: the k most probable tokens; None when not asked for.
    sum_squared_probs: `[...]`, sum over the vocabulary of the squared probabilities,
      which has no unit; None when not asked for. No gradient.
    candidates: `[..., K]`, log-probabilities of the further tokens that were asked for,
      -inf for an id that is no token; None without any.
  """

  logp: jax.Array
  entropy: jax.Array | None
  log_normalizer: jax.Array
  top_k: TopK | None
  sum_squared_probs: jax.Array | None = None
  candidates: jax.Array | None = None
