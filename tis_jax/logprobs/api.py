"""Token log-probs from final hidden states and the unembedding."""

import jax
import jax.numpy as jnp

from tis_jax.logprobs.fused import fused_logprobs
from tis_jax.logprobs.placement import align, vocab_placement
from tis_jax.logprobs.plan import Inputs, Plan
from tis_jax.logprobs.reference import (
  check_temperature,
  logprobs_from_logits,
  materialized_logits,
)
from tis_jax.logprobs.types import TokenLogprobs

_IMPLEMENTATIONS = ("xla", "reference")


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
  implementation: str | None = None,
  precision: jax.lax.Precision | None = None,
  block_elements: int | None = None,
  vocab_axis: str | tuple[str, ...] | None = None,
) -> TokenLogprobs:
  """Log-probs, entropy and log-normaliser of `targets`, without holding the logits.

  logp = l[target] - logsumexp(l),   l = (cap(hidden @ head) + bias) / temperature
  """
  vocab_dim = 0 if tied else 1
  if head.ndim != 2 or head.shape[1 - vocab_dim] != hidden.shape[-1]:
    order = "[V, D]" if tied else "[D, V]"
    raise ValueError(f"head {head.shape} is not {order} for hidden {hidden.shape}")
  vocab = head.shape[vocab_dim]
  if targets.shape != hidden.shape[:-1]:
    raise ValueError(f"targets {targets.shape} do not match hidden {hidden.shape}")
  if bias is not None and bias.shape != (vocab,):
    raise ValueError(f"bias {bias.shape} is not one number per token, ({vocab},)")
  if not 0 <= top_k <= vocab:
    raise ValueError(f"top_k {top_k} is not between 0 and the vocabulary, {vocab}")
  implementation = implementation or "xla"
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f"implementation {implementation!r} is not one of {_IMPLEMENTATIONS}"
    )

  temperature = check_temperature(temperature, targets.shape)
  if mask is not None:
    # Garbage that is selected away here meets no product in the value or the gradient.
    mask = mask.astype(bool)
    hidden = jnp.where(mask[..., None], hidden, jnp.zeros((), hidden.dtype))
    targets = jnp.where(mask, targets, 0)
    temperature = jnp.where(mask, temperature, 1.0)

  if implementation == "reference":
    out = logprobs_from_logits(
      materialized_logits(
        hidden, head, bias=bias, soft_cap=soft_cap, tied=tied, precision=precision
      ),
      targets,
      temperature=temperature,
      entropy=entropy,
      top_k=top_k,
    )
  else:
    axes, mesh = vocab_placement(head, vocab_dim, vocab_axis)
    inputs = align(Inputs(hidden, head, bias, targets, temperature), vocab_dim, axes)
    plan = Plan(
      kernel=implementation,
      tied=tied,
      soft_cap=soft_cap,
      entropy=entropy,
      top_k=top_k,
      precision=precision,
      block_elements=block_elements,
      vocab_axes=axes,
      mesh=mesh,
    )
    out = fused_logprobs(plan, inputs)
  if mask is None:
    return out
  return jax.tree.map(
    lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0),
    out,
  )
