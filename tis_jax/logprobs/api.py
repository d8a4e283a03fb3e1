"""Token log-probs from final hidden states and the unembedding."""

import jax
import jax.numpy as jnp

from tis_jax.logprobs.reference import logprobs_from_logits, materialized_logits
from tis_jax.logprobs.types import TokenLogprobs


def token_logprobs(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  temperature: jax.Array | float = 1.0,
  bias: jax.Array | None = None,
  soft_cap: float | None = None,
  tied: bool = False,
  mask: jax.Array | None = None,
  entropy: bool = True,
  top_k: int = 0,
) -> TokenLogprobs:
  """Log-probs and entropy of `targets`.

  logp = l[target] - logsumexp(l),   l = (cap(hidden @ head) + bias) / temperature
  """
  if mask is not None:
    hidden = jnp.where(mask[..., None], hidden, jnp.zeros_like(hidden))
    targets = jnp.where(mask, targets, jnp.zeros_like(targets))
  logits = materialized_logits(hidden, head, bias=bias, soft_cap=soft_cap, tied=tied)
  return logprobs_from_logits(
    logits, targets, temperature=temperature, entropy=entropy, top_k=top_k
  )
