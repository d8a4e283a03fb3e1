"""Token log-probs from final hidden states and the unembedding."""

import jax
import jax.numpy as jnp

from tis_jax.logprobs.fused import fused_logprobs
from tis_jax.logprobs.placement import align, vocab_placement
from tis_jax.logprobs.plan import Inputs, Plan
from tis_jax.logprobs.reference import (
  check_ids,
  check_temperature,
  logprobs_from_logits,
  materialized_logits,
)
from tis_jax.logprobs.types import TokenLogprobs
from tis_jax.numerics.arrays import Array

IMPLEMENTATIONS = ("xla", "pallas", "reference")


def token_logprobs(
  hidden: jax.Array,
  head: jax.Array,
  targets: Array,
  *,
  temperature: jax.Array | float = 1.0,
  bias: jax.Array | None = None,
  soft_cap: float | None = None,
  tied: bool = False,
  mask: Array | None = None,
  kept_tokens: Array | None = None,
  candidates: Array | None = None,
  entropy: bool = True,
  top_k: int = 0,
  sum_squared_probs: bool = False,
  implementation: str | None = None,
  precision: jax.lax.Precision | None = None,
  block_elements: int | None = None,
  vocab_axis: str | tuple[str, ...] | None = None,
) -> TokenLogprobs:
  """Log-probs, entropy and log-normaliser of `targets`, without holding the logits.

      logp = l[target] - logsumexp(l)
      l = (cap(hidden @ head) + bias) / temperature,   cap(x) = c tanh(x / c)

  The same readings as `logprobs_from_logits`, from one block of logits at a time, with
  gradients by hand: exact in `hidden`, `head`, `bias` and `temperature`, the head's
  summed in fp32. An entropy that the loss does not use (a metric) costs the backward
  pass nothing. `top_k` and `sum_squared_probs` carry no gradient. Forward-mode
  derivatives need `implementation="reference"`.

  Args:
    hidden: `[..., D]` final hidden states. Give `[B, T, D]` where B is sharded.
    head: `[D, V]`, or with `tied` the embedding table `[V, D]`.
    targets: `[...]` integer token ids; one outside `[0, V)` gives NaN.
    temperature: positive scalar, or an array that broadcasts to `targets`; may be
      traced. Divides the logits in fp32.
    bias: `[V]`, added after the soft-cap, so that -inf removes a token.
    soft_cap: c above; None for none.
    tied: whether `head` is `[V, D]`.
    mask: `[...]`; where False every reading is 0, and nothing of `hidden`, `targets`
      and `temperature` there, NaN included, reaches a value or a gradient.
    kept_tokens: `[..., K]` ids that sampling chose from, padded with -1: all other
      tokens are impossible, and every reading is of the distribution renormalised over
      these. A row of -1 keeps all tokens. K compares for each logit: meant for tens
      of tokens.
    candidates: `[..., K]` ids of further tokens to read the log-probs of, with
      gradient, padded with -1. K compares for each logit, as above; not with "pallas".
    entropy: whether to compute the entropy.
    top_k: how many of the most probable tokens to return, 0 for none.
    sum_squared_probs: whether to sum the squared probabilities of the vocabulary,
      `exp(logsumexp(2 l) - 2 logsumexp(l))`; not with "pallas".
    implementation: "xla", "pallas" (TPU; not the default, since it has not been run on
      one) or "reference" (holds all logits). None is "xla".
    precision: of the matrix products. None: fp32 operands are multiplied in full fp32
      (not in bf16 or TF32 passes), bf16 operands exactly, their sums in fp32, and the
      logits' cotangent is rounded to bf16 before the two backward products;
      `Precision.HIGHEST` keeps it fp32.
    block_elements: the most logits held at once; None for a default of the platform.
    vocab_axis: mesh axis, or axes, that V is sharded over. An Explicit mesh knows. On
      an Auto mesh name it, inside `jax.set_mesh`, or XLA gathers the head.

  Returns:
    `TokenLogprobs`, fp32, in nats.

  Raises:
    ValueError: where shapes disagree, a Python `temperature` is not positive, or
      `vocab_axis` is not on the mesh.

  >>> import jax.numpy as jnp
  >>> hidden = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  >>> head = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]))
  >>> out = token_logprobs(hidden, head, jnp.array([1, 0]))
  >>> [round(float(x), 4) for x in jnp.exp(out.logp)]
  [0.25, 0.8]
  >>> [round(float(x), 4) for x in out.entropy]
  [1.0397, 0.639]

  Reference: the running maximum and sum are those of Milakov and Gimelshein 2018
  (arXiv 1805.02867); recomputing blocks of logits in the backward pass is the idea of
  cut cross-entropy, Wijmans et al. 2024 (arXiv 2411.09009), here exact: no gradient is
  dropped for being small.
  """
  implementation = implementation or "xla"
  vocab_dim = 0 if tied else 1
  _check(hidden, head, targets, bias, vocab_dim, top_k, implementation)
  check_ids("kept_tokens", kept_tokens, targets.shape)
  check_ids("candidates", candidates, targets.shape)
  # Temperature 1 is the common case, and a division by 1 is not free.
  is_one = isinstance(temperature, (int, float)) and temperature == 1
  divisor = None if is_one else check_temperature(temperature, targets.shape)
  if mask is not None:
    # Garbage that is selected away here meets no product in the value or the gradient.
    mask = mask.astype(bool)
    hidden = jnp.where(mask[..., None], hidden, jnp.zeros((), hidden.dtype))
    targets = jnp.where(mask, targets, 0)
    divisor = None if divisor is None else jnp.where(mask, divisor, 1.0)

  if implementation == "reference":
    out = logprobs_from_logits(
      materialized_logits(
        hidden, head, bias=bias, soft_cap=soft_cap, tied=tied, precision=precision
      ),
      targets,
      temperature=1.0 if divisor is None else divisor,
      kept_tokens=kept_tokens,
      candidates=candidates,
      entropy=entropy,
      top_k=top_k,
      sum_squared_probs=sum_squared_probs,
    )
  else:
    axes, mesh = vocab_placement(head, vocab_dim, vocab_axis)
    inputs = Inputs(hidden, head, bias, targets, divisor, kept_tokens, candidates)
    inputs = align(inputs, vocab_dim, axes)
    plan = Plan(
      kernel=implementation,
      tied=tied,
      soft_cap=soft_cap,
      entropy=entropy,
      top_k=top_k,
      sum_squared_probs=sum_squared_probs,
      precision=precision,
      block_elements=block_elements,
      vocab_axes=axes,
      mesh=mesh,
    )
    out = fused_logprobs(plan, inputs)
  if mask is None:
    return out
  return jax.tree.map(
    lambda x: jnp.where(mask if x.ndim == mask.ndim else mask[..., None], x, 0), out
  )


def _check(hidden, head, targets, bias, vocab_dim, top_k, implementation) -> None:
  if head.ndim != 2 or head.shape[1 - vocab_dim] != hidden.shape[-1]:
    order = "[D, V]" if vocab_dim else "[V, D]"
    raise ValueError(f"head {head.shape} is not {order} for hidden {hidden.shape}")
  vocab = head.shape[vocab_dim]
  if targets.shape != hidden.shape[:-1]:
    raise ValueError(f"targets {targets.shape} do not match hidden {hidden.shape}")
  if bias is not None and bias.shape != (vocab,):
    raise ValueError(f"bias {bias.shape} is not one number per token, ({vocab},)")
  if not 0 <= top_k <= vocab:
    raise ValueError(f"top_k {top_k} is not between 0 and the vocabulary, {vocab}")
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation {implementation!r} is not one of {IMPLEMENTATIONS}"
    )
  if implementation == "pallas" and jax.default_backend() == "gpu":
    raise ValueError("the pallas kernel is for a TPU; use implementation='xla'")
