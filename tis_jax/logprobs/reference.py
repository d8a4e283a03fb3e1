"""The definition: log-probs from logits that are held in full.

Every other implementation is tested against this one, and this one against float64.
"""

import jax
import jax.numpy as jnp

from tis_jax.logprobs.blockwise import at_ids, is_kept
from tis_jax.logprobs.product import (
  compute_dtype,
  feature_spans,
  product,
  product_precision,
)
from tis_jax.logprobs.types import TokenLogprobs, TopK
from tis_jax.numerics.arrays import Array


def logprobs_from_logits(
  logits: jax.Array,
  targets: Array,
  *,
  temperature: jax.Array | float = 1.0,
  kept_tokens: Array | None = None,
  candidates: Array | None = None,
  entropy: bool = True,
  top_k: int = 0,
  sum_squared_probs: bool = False,
) -> TokenLogprobs:
  """Log-probs, entropy and log-normaliser of `targets` under given logits.

      logp = l[target] - logsumexp(l),   l = float32(logits) / temperature

  The one definition of a log-prob in this library; a sampler that holds the logits of a
  decode step calls it directly, a learner calls `token_logprobs`, which agrees with it
  without holding them. An entry of -inf is a token of probability 0. Differentiable in
  `logits` and `temperature`.

  Args:
    logits: `[..., V]`, any float dtype; converted to fp32 before anything else.
    targets: `[...]` integer token ids in `[0, V)`; one outside gives NaN, never a
      number that looks like a log-prob.
    temperature: positive scalar, or an array that broadcasts to `targets`; may be
      traced.
    kept_tokens: `[..., K]` ids, padded with -1, to renormalise over; see
      `token_logprobs`.
    candidates: `[..., K]` ids of further tokens to read, padded with -1.
    entropy: whether to compute the entropy.
    top_k: how many of the most probable tokens to return, 0 for none.
    sum_squared_probs: whether to sum the squared probabilities,
      `exp(logsumexp(2 l) - 2 logsumexp(l))`; carries no gradient.

  Returns:
    `TokenLogprobs`, fp32, in nats.

  Raises:
    ValueError: where the shapes disagree, or a Python `temperature` is not positive.

  >>> import jax.numpy as jnp
  >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> out = logprobs_from_logits(logits, jnp.array([1]), top_k=2)
  >>> [round(float(x), 4) for x in jnp.exp(out.logp)]
  [0.25]
  >>> round(float(out.entropy[0]), 4)  # 1.5 ln 2
  1.0397
  >>> out.top_k.tokens
  Array([[0, 1]], dtype=int32)

  Reference: the softmax with its maximum taken out, as in any text on numerics; why the
  dtype matters is measured on the numerics page of the documentation.
  """
  if logits.shape[:-1] != targets.shape:
    raise ValueError(f"logits {logits.shape} and targets {targets.shape} do not match")
  temperature = check_temperature(temperature, targets.shape)
  logits = logits.astype(jnp.float32)
  ids = (1,) * targets.ndim + logits.shape[-1:]
  ids = jax.lax.broadcasted_iota(jnp.int32, ids, targets.ndim)
  if kept_tokens is not None:
    check_ids("kept_tokens", kept_tokens, targets.shape)
    logits = jnp.where(is_kept(kept_tokens, ids), logits, -jnp.inf)

  peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  # An impossible token takes the maximum's place before the division and is removed
  # after it: -inf times the zero gradient that reaches it would be NaN.
  possible = logits > -jnp.inf
  # The difference first: two logits of 1e4 that were divided first would each be
  # rounded by more than the error allowed.
  shifted = (jnp.where(possible, logits, peak) - peak) / temperature[..., None]
  exp_shifted = jnp.where(possible, jnp.exp(shifted), 0.0)
  total = jnp.sum(exp_shifted, axis=-1)
  log_total = jnp.log(total)

  # A compare-and-sum, not a gather: a gather fails on a vocab-sharded Explicit mesh.
  at_target = ids == targets[..., None]
  shifted_or_gone = jnp.where(possible, shifted, -jnp.inf)
  at_target_shifted = jnp.sum(jnp.where(at_target, shifted_or_gone, 0.0), axis=-1)
  in_range = (targets >= 0) & (targets < logits.shape[-1])
  logp = jnp.where(in_range, at_target_shifted - log_total, jnp.nan)

  further = None
  if candidates is not None:
    check_ids("candidates", candidates, targets.shape)
    found = at_ids(candidates, ids, shifted_or_gone) - log_total[..., None]
    is_token = (candidates >= 0) & (candidates < logits.shape[-1])
    # -inf does not move, whatever the others do.
    further = jnp.where(is_token & (found > -jnp.inf), found, -jnp.inf)

  uncertainty = None
  if entropy:
    # Both terms are measured from the maximum, so logits of 1e4 cost no digits.
    uncertainty = log_total - jnp.sum(exp_shifted * shifted, axis=-1) / total
  best = None
  if top_k:
    values, tokens = jax.lax.top_k(jax.lax.stop_gradient(shifted_or_gone), top_k)
    best = TopK(values - jax.lax.stop_gradient(log_total)[..., None], tokens)
  squared = None
  if sum_squared_probs:
    squared = jax.lax.stop_gradient(jnp.sum(exp_shifted**2, axis=-1) / total**2)
  return TokenLogprobs(
    logp=logp,
    entropy=uncertainty,
    log_normalizer=log_total + peak[..., 0] / temperature,
    top_k=best,
    sum_squared_probs=squared,
    candidates=further,
  )


def materialized_logits(
  hidden: jax.Array,
  head: jax.Array,
  *,
  bias: jax.Array | None = None,
  soft_cap: float | None = None,
  tied: bool = False,
  precision: jax.lax.Precision | None = None,
) -> jax.Array:
  """`[..., V]` fp32 logits before temperature: cap(hidden @ head) + bias."""
  dtype = compute_dtype(hidden, head)
  logits = product(
    hidden.astype(dtype),
    head.astype(dtype),
    0 if tied else 1,
    product_precision(precision, dtype),
    feature_spans(hidden, head, precision),
  )
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  if bias is not None:
    logits = logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)
  return logits


def check_temperature(temperature, shape: tuple[int, ...]) -> jax.Array:
  """fp32 temperature broadcast to `shape`; a Python number must be positive."""
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(
      f"temperature {temperature} is not positive; greedy decoding has no log-prob of"
      " its own (score it at temperature 1)"
    )
  return jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), shape)


def check_ids(name: str, ids, shape: tuple[int, ...]) -> None:
  """Refuses sets of ids, `[..., K]`, that are not one for each target."""
  if ids is not None and ids.shape[:-1] != shape:
    raise ValueError(f"{name} {ids.shape} do not match targets {shape}")
