"""The portable kernel: a loop over vocabulary blocks, two or four products a block.

Per token it keeps a running maximum, the sum of exponentials below it, the first moment
of those (for the entropy) and the target's logit. The backward pass recomputes each
block of logits from the saved maximum and sum, so what exists of `[tokens, vocab]` is
one block at any time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tis_jax.logprobs.blockwise import (
  add_at_ids,
  at_ids,
  is_kept,
  logits_cotangent,
  shifted_product,
  soft_capped,
  tempered,
  through_soft_cap,
  update,
)
from tis_jax.logprobs.placement import contract_tokens, scan_tokens
from tis_jax.logprobs.plan import (
  FLOOR,
  Cotangent,
  Gradients,
  Inputs,
  Plan,
  Stats,
  Wanted,
  block_sizes,
)
from tis_jax.logprobs.product import (
  compute_dtype,
  feature_spans,
  gradient_dtype,
  product,
  product_precision,
)


def forward(inputs: Inputs, offset: jax.Array | int, plan: Plan) -> Stats:
  """`Stats` over the vocabulary that `inputs.head` holds; ids start at `offset`."""
  vocab = inputs.head.shape[plan.vocab_dim]
  token_block, vocab_block = block_sizes(
    inputs.targets.size, vocab, plan.block_elements
  )

  # Readings are measured to the last digit; the recomputed logits of the backward pass
  # are good enough from one sum.
  spans = feature_spans(inputs.hidden, inputs.head, plan.precision)

  def chunk(_, per_token):
    part = inputs._replace(**per_token)

    def step(start, size, stats):
      block = _block(part, start, size, offset + start, plan, spans)
      top = _top_of(block.logits, block.ids, plan.top_k)
      top = merge_top(stats.top, top, plan.top_k)
      hit = block.ids == part.targets
      found = stats.at_candidates
      if part.candidates is not None:
        found = found + at_ids(part.candidates, block.ids, block.logits)
      stats = update(stats, block.logits, hit, part.temperature)
      return stats._replace(top=top, at_candidates=found)

    return None, _over_vocab(step, vocab, vocab_block, _empty(part, plan))

  stats = scan_tokens(chunk, None, _columns(inputs), inputs.hidden, token_block)[1]
  wide = {"top": stats.top, "at_candidates": stats.at_candidates}
  return _rows(stats)._replace(**wide)


def backward(
  inputs: Inputs,
  offset: jax.Array | int,
  log_p_offset: tuple[jax.Array, jax.Array],
  entropy: jax.Array | None,
  cotangent: Cotangent,
  wanted: Wanted,
  plan: Plan,
) -> Gradients:
  """Gradients for the vocabulary that `inputs.head` holds.

  Args:
    inputs: as in `forward`.
    offset: id of the first token of the head.
    log_p_offset: peak and log-sum over the *whole* vocabulary,
      log p = (z - peak) / T - log-sum.
    entropy: of the whole distribution; needed with `cotangent.entropy`.
    cotangent: of the scaled logits.
    wanted: which gradients to compute.
    plan: the call.

  Returns:
    `Gradients`; those of hidden and temperature cover this stretch of vocabulary only,
    and that of the temperature is sum_v d loss/d l_v (z_v - peak) / T.
  """
  vocab = inputs.head.shape[plan.vocab_dim]
  token_block, vocab_block = block_sizes(
    inputs.targets.size, vocab, plan.block_elements
  )

  def chunk(head_gradients, per_token):
    columns, peak, log_total, entropy, cotangent, d_candidates = per_token
    part = inputs._replace(**columns)

    def step(start, size, gradients):
      block = _block(part, start, size, offset + start, plan)
      # A target that is impossible has log-prob -inf, which does not move.
      hit = (block.ids == part.targets) & (block.logits > -jnp.inf)
      shifted = tempered(block.logits - peak, part.temperature)
      d_scaled = logits_cotangent(shifted - log_total, hit, entropy, cotangent)
      if d_candidates is not None:
        d_scaled = add_at_ids(d_scaled, d_candidates, part.candidates, block.ids)
      return _accumulate(gradients, part, block, shifted, d_scaled, start, plan)

    head, bias = head_gradients
    zeros = Gradients(
      hidden=_zeros(part.hidden) if wanted.hidden else None,
      head=head,
      bias=bias,
      temperature=_zeros(part.temperature) if wanted.temperature else None,
    )
    total = _over_vocab(step, vocab, vocab_block, zeros)
    return (total.head, total.bias), (total.hidden, total.temperature)

  head_gradients = (
    _zeros(inputs.head) if wanted.head else None,
    _zeros(inputs.bias) if wanted.bias else None,
  )
  d_candidates, cotangent = cotangent.candidates, cotangent._replace(candidates=None)
  rest = jax.tree.map(lambda x: x[..., None], (*log_p_offset, entropy, cotangent))
  per_token = (_columns(inputs), *rest, d_candidates)
  (d_head, d_bias), (d_hidden, d_temperature) = scan_tokens(
    chunk, head_gradients, per_token, inputs.hidden, token_block
  )
  return Gradients(d_hidden, d_head, d_bias, _rows(d_temperature))


class _Block(NamedTuple):
  head: jax.Array  # the block's part of the head, in the compute dtype
  capped: jax.Array  # logits after the soft-cap, before the bias
  logits: jax.Array  # after the bias, -inf where not kept; before the temperature
  ids: jax.Array  # [1, ..., C]


def _block(
  inputs: Inputs, start, size: int, first_id, plan: Plan, spans: int = 1
) -> _Block:
  dtype = compute_dtype(inputs.hidden, inputs.head)
  head = lax.dynamic_slice_in_dim(inputs.head, start, size, plan.vocab_dim)
  head = head.astype(dtype)
  precision = product_precision(plan.precision, dtype)
  logits = product(inputs.hidden.astype(dtype), head, plan.vocab_dim, precision, spans)
  capped = logits = soft_capped(logits, plan.soft_cap)
  if inputs.bias is not None:
    bias = lax.dynamic_slice_in_dim(inputs.bias, start, size, 0).astype(jnp.float32)
    logits = logits + jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))
  ids = (1,) * (logits.ndim - 1) + (size,)
  ids = first_id + lax.broadcasted_iota(jnp.int32, ids, logits.ndim - 1)
  if inputs.kept is not None:
    logits = jnp.where(is_kept(inputs.kept, ids), logits, -jnp.inf)
  return _Block(head, capped, logits, ids)


def _accumulate(
  gradients: Gradients,
  inputs: Inputs,
  block: _Block,
  shifted,
  d_scaled,
  start,
  plan: Plan,
) -> Gradients:
  d_hidden, d_head, d_bias, d_temperature = gradients
  if d_temperature is not None:
    d_temperature = d_temperature + shifted_product(d_scaled, shifted)
  d_logits = tempered(d_scaled, inputs.temperature)
  if d_bias is not None:
    tokens = tuple(range(d_logits.ndim - 1))
    d_bias = _add_at(d_bias, jnp.sum(d_logits, axis=tokens), start, 0)
  d_logits = through_soft_cap(d_logits, block.capped, plan.soft_cap)

  dtype = gradient_dtype(plan.precision, compute_dtype(inputs.hidden, inputs.head))
  precision = product_precision(plan.precision, dtype)
  d_logits = d_logits.astype(dtype)
  if d_hidden is not None:
    d_hidden = d_hidden + lax.dot_general(
      d_logits,
      block.head.astype(dtype),
      (((d_logits.ndim - 1,), (plan.vocab_dim,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
  if d_head is not None:
    pair = (inputs.hidden.astype(dtype), d_logits)
    product = contract_tokens(*(pair[::-1] if plan.tied else pair), precision)
    d_head = _add_at(d_head, product, start, plan.vocab_dim)
  return Gradients(d_hidden, d_head, d_bias, d_temperature)


def merge_top(best, more, k: int):
  """The k largest of two sets of (values, ids); ties go to the smaller id."""
  if not k:
    return None
  values, ids = (
    jnp.concatenate(pair, axis=-1) for pair in zip(best, more, strict=True)
  )
  # A sort by two keys, since top_k leaves the ids to a gather.
  negated, ids = lax.sort((-values, ids), dimension=-1, num_keys=2)
  return -negated[..., :k], ids[..., :k]


def _top_of(logits, ids, k: int):
  if not k:
    return None
  values, places = lax.top_k(lax.stop_gradient(logits), min(k, logits.shape[-1]))
  return values, places.astype(jnp.int32) + ids[..., :1]


def _over_vocab(step, vocab: int, block: int, carry):
  whole, rest = divmod(vocab, block)
  if whole == 1:
    carry = step(0, block, carry)
  elif whole:
    carry = lax.fori_loop(0, whole, lambda i, c: step(i * block, block, c), carry)
  return step(whole * block, rest, carry) if rest else carry


def _empty(inputs: Inputs, plan: Plan) -> Stats:
  zeros = _zeros(inputs.targets)
  top = None
  if plan.top_k:
    wide = jnp.broadcast_to(zeros, (*zeros.shape[:-1], plan.top_k))
    last = jnp.iinfo(jnp.int32).max
    top = (wide - jnp.inf, lax.full_like(wide, last, dtype=jnp.int32))
  moment = zeros if plan.entropy else None
  squared = zeros if plan.sum_squared_probs else None
  wide = None if inputs.candidates is None else _zeros(inputs.candidates)
  return Stats(zeros + FLOOR, zeros, moment, zeros, top, squared, wide)


def _columns(inputs: Inputs) -> dict[str, Any]:
  """The inputs that are cut along the tokens, beside a block of logits."""
  temperature = inputs.temperature
  return {
    "hidden": inputs.hidden,
    "targets": inputs.targets[..., None],
    "temperature": None if temperature is None else temperature[..., None],
    "kept": inputs.kept,
    "candidates": inputs.candidates,
  }


def _rows(columns):
  return jax.tree.map(lambda x: x[..., 0], columns)


def _add_at(total, block, start, axis: int):
  size = block.shape[axis]
  before = lax.dynamic_slice_in_dim(total, start, size, axis)
  return lax.dynamic_update_slice_in_dim(total, before + block, start, axis)


def _zeros(like):
  # full_like keeps the sharding of its argument on an Explicit mesh.
  return lax.full_like(like, 0, dtype=jnp.float32)
