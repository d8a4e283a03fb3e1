"""The same passes as Pallas kernels for a TPU: a block of logits never leaves VMEM.

Not the default: they are tested in the interpreter and lowered for a TPU by the tests,
and have not been run on one. The grid runs in order on a TPU, so what is accumulated
along its last axis stays in the output block between steps.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tis_jax.logprobs.blockwise import (
  logits_cotangent,
  shifted_product,
  soft_capped,
  tempered,
  through_soft_cap,
  update,
)
from tis_jax.logprobs.plan import (
  FLOOR,
  Cotangent,
  Gradients,
  Inputs,
  Plan,
  Stats,
  Wanted,
)
from tis_jax.logprobs.product import compute_dtype, gradient_dtype, product_precision

# Two copies of every block (one is being fetched) and the products share VMEM.
_BLOCK_BYTES = 2 << 20
_LANES = 128


class _Arrays(NamedTuple):
  """`Inputs` as the kernels take them, none missing; inside a kernel their refs."""

  hidden: jax.Array  # [tokens, D]
  head: jax.Array  # [D, V], or [V, D] when tied
  bias: jax.Array  # [1, V]
  targets: jax.Array  # [tokens, 1]
  temperature: jax.Array  # [tokens, 1]


def forward(inputs: Inputs, offset, plan: Plan) -> Stats:
  """As `xla.forward`; without what needs more than a column a token."""
  wide = inputs.kept is not None or inputs.candidates is not None
  if plan.top_k or plan.sum_squared_probs or wide:
    raise ValueError(
      "top_k, sum_squared_probs, kept_tokens and candidates need implementation='xla'"
    )
  arrays, shape = _flat(inputs, offset, plan)
  tokens, vocab, blocks = _sizes(arrays, plan)
  column = pl.BlockSpec((blocks[0], 1), lambda i, j: (i, 0))
  out = _call(
    partial(_forward_kernel, plan=plan, vocab=vocab),
    arrays,
    grid=(pl.cdiv(tokens, blocks[0]), pl.cdiv(vocab, blocks[1])),
    in_specs=_in_specs(arrays, blocks, plan, lambda i, j: (i, j)),
    out_specs=[column] * 4,
    out_shape=[jax.ShapeDtypeStruct((tokens, 1), jnp.float32)] * 4,
  )
  peak, total, moment, at_target = (x.reshape(shape) for x in out)
  return Stats(peak, total, moment if plan.entropy else None, at_target, None)


def backward(
  inputs: Inputs,
  offset,
  log_p_offset,
  entropy,
  cotangent: Cotangent,
  wanted: Wanted,
  plan: Plan,
) -> Gradients:
  """As `xla.backward`: one kernel sums over the vocabulary, one over the tokens."""
  arrays, shape = _flat(inputs, offset, plan)
  tokens, vocab, blocks = _sizes(arrays, plan)
  # Without candidates, which `forward` refuses.
  of_columns = cotangent.common, cotangent.logp, cotangent.entropy
  columns = [
    jnp.zeros((tokens, 1), jnp.float32) if x is None else x.reshape(tokens, 1)
    for x in (*log_p_offset, entropy, *of_columns)
  ]
  grid = (pl.cdiv(tokens, blocks[0]), pl.cdiv(vocab, blocks[1]))
  kernel_of = lambda kernel: partial(kernel, plan=plan, vocab=vocab, tokens=tokens)
  d_hidden = d_temperature = d_head = d_bias = None

  if wanted.hidden or wanted.temperature:
    order = lambda i, j: (i, j)
    column = pl.BlockSpec((blocks[0], 1), lambda i, j: (i, 0))
    width = arrays.hidden.shape[1]
    d_hidden, d_temperature = _call(
      kernel_of(_tokens_kernel),
      arrays,
      *columns,
      grid=grid,
      in_specs=_in_specs(arrays, blocks, plan, order) + [column] * len(columns),
      out_specs=[pl.BlockSpec((blocks[0], width), lambda i, j: (i, 0)), column],
      out_shape=[
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens, 1), jnp.float32),
      ],
    )
    d_hidden = d_hidden.reshape(inputs.hidden.shape)
    d_temperature = d_temperature.reshape(shape)

  if wanted.head or wanted.bias:
    order = lambda j, i: (i, j)
    column = pl.BlockSpec((blocks[0], 1), lambda j, i: (i, 0))
    specs = _in_specs(arrays, blocks, plan, order)
    d_head, d_bias = _call(
      kernel_of(_vocab_kernel),
      arrays,
      *columns,
      grid=grid[::-1],
      in_specs=specs + [column] * len(columns),
      out_specs=specs[1:3],
      out_shape=[
        jax.ShapeDtypeStruct(arrays.head.shape, jnp.float32),
        jax.ShapeDtypeStruct((1, vocab), jnp.float32),
      ],
    )
    d_bias = d_bias[0]
  return Gradients(
    d_hidden if wanted.hidden else None,
    d_head if wanted.head else None,
    d_bias if wanted.bias else None,
    d_temperature if wanted.temperature else None,
  )


def _forward_kernel(*refs, plan: Plan, vocab: int):
  inputs, outputs = _Arrays(*refs[:5]), refs[5:]
  block = pl.program_id(1)

  @pl.when(block == 0)
  def _():
    for ref, start in zip(outputs, (FLOOR, 0.0, 0.0, 0.0), strict=True):
      ref[...] = jnp.full(ref.shape, start, jnp.float32)

  _, _, logits, hit = _logits(inputs, block, plan, vocab)
  peak, total, moment, at_target = (ref[...] for ref in outputs)
  stats = Stats(peak, total, moment if plan.entropy else None, at_target, None)
  stats = update(stats, logits, hit, inputs.temperature[...])
  for ref, value in zip(outputs, stats[:4], strict=True):
    if value is not None:
      ref[...] = value


def _tokens_kernel(*refs, plan: Plan, vocab: int, tokens: int):
  inputs, columns = _Arrays(*refs[:5]), refs[5:11]
  d_hidden_ref, d_temperature_ref = refs[11:]
  block = pl.program_id(1)

  @pl.when(block == 0)
  def _():
    d_hidden_ref[...] = jnp.zeros(d_hidden_ref.shape, jnp.float32)
    d_temperature_ref[...] = jnp.zeros(d_temperature_ref.shape, jnp.float32)

  head, shifted, d_scaled, d_logits = _d_logits(inputs, columns, block, plan, vocab)
  # Columns beyond the vocabulary hold anything, and 0 times anything may be NaN.
  head = _keep(head, plan.vocab_dim, block, vocab)
  dtype, precision = _gradient_types(inputs, plan)
  d_hidden_ref[...] += lax.dot_general(
    d_logits.astype(dtype),
    head.astype(dtype),
    (((1,), (plan.vocab_dim,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  d_temperature_ref[...] += shifted_product(d_scaled, shifted)


def _vocab_kernel(*refs, plan: Plan, vocab: int, tokens: int):
  inputs, columns = _Arrays(*refs[:5]), refs[5:11]
  d_head_ref, d_bias_ref = refs[11:]
  row_block = pl.program_id(1)

  @pl.when(row_block == 0)
  def _():
    d_head_ref[...] = jnp.zeros(d_head_ref.shape, jnp.float32)
    d_bias_ref[...] = jnp.zeros(d_bias_ref.shape, jnp.float32)

  *_, d_scaled, d_logits = _d_logits(inputs, columns, pl.program_id(0), plan, vocab)
  # Rows beyond the last token hold anything.
  d_logits = _keep(d_logits, 0, row_block, tokens)
  hidden = _keep(inputs.hidden[...], 0, row_block, tokens)
  d_biased = _keep(d_scaled / inputs.temperature[...], 0, row_block, tokens)
  dtype, precision = _gradient_types(inputs, plan)
  pair = (hidden.astype(dtype), d_logits.astype(dtype))
  d_head_ref[...] += lax.dot_general(
    *(pair[::-1] if plan.tied else pair),
    (((0,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  d_bias_ref[...] += jnp.sum(d_biased, axis=0, keepdims=True)


def _logits(inputs: _Arrays, block, plan: Plan, vocab: int):
  head = inputs.head[...]
  dtype = compute_dtype(inputs.hidden, head)
  logits = lax.dot_general(
    inputs.hidden[...].astype(dtype),
    head.astype(dtype),
    (((1,), (1 - plan.vocab_dim,)), ((), ())),
    precision=product_precision(plan.precision, dtype),
    preferred_element_type=jnp.float32,
  )
  capped = soft_capped(logits, plan.soft_cap)
  ids = _places(capped.shape, 1, block)
  logits = jnp.where(ids < vocab, capped + inputs.bias[...], -jnp.inf)
  return head, capped, logits, (ids == inputs.targets[...]) & (logits > -jnp.inf)


def _d_logits(inputs: _Arrays, columns, block, plan: Plan, vocab: int):
  head, capped, logits, hit = _logits(inputs, block, plan, vocab)
  peak, log_total, entropy, *cotangent = (ref[...] for ref in columns)
  shifted = tempered(logits - peak, inputs.temperature[...])
  d_scaled = logits_cotangent(shifted - log_total, hit, entropy, Cotangent(*cotangent))
  d_logits = through_soft_cap(d_scaled / inputs.temperature[...], capped, plan.soft_cap)
  # The cap's derivative beyond the vocabulary is that of garbage.
  return head, shifted, d_scaled, _keep(d_logits, 1, block, vocab)


def _gradient_types(inputs: _Arrays, plan: Plan):
  dtype = gradient_dtype(plan.precision, compute_dtype(inputs.hidden, inputs.head))
  return dtype, product_precision(plan.precision, dtype)


def _keep(x, axis: int, block, size: int):
  return jnp.where(_places(x.shape, axis, block) < size, x, jnp.zeros((), x.dtype))


def _places(shape, axis: int, block):
  return block * shape[axis] + lax.broadcasted_iota(jnp.int32, shape, axis)


def _flat(inputs: Inputs, offset, plan: Plan) -> tuple[_Arrays, tuple[int, ...]]:
  """Tokens along one axis, every optional array present, ids counted from 0."""
  shape = inputs.targets.shape
  tokens = inputs.targets.size
  vocab = inputs.head.shape[plan.vocab_dim]
  bias, temperature = inputs.bias, inputs.temperature
  return _Arrays(
    hidden=inputs.hidden.reshape(tokens, -1),
    head=inputs.head,
    bias=jnp.zeros((1, vocab), jnp.float32)
    if bias is None
    else bias.astype(jnp.float32)[None],
    targets=(inputs.targets - offset).astype(jnp.int32).reshape(tokens, 1),
    temperature=jnp.ones((tokens, 1), jnp.float32)
    if temperature is None
    else temperature.reshape(tokens, 1),
  ), shape


def _sizes(arrays: _Arrays, plan: Plan):
  """Tokens, vocabulary, and the block of each."""
  tokens, width = arrays.hidden.shape
  vocab = arrays.head.shape[plan.vocab_dim]
  fitting = _BLOCK_BYTES // (4 * width) // _LANES * _LANES
  block = max(_LANES, min(512, fitting))
  return tokens, vocab, (min(block, tokens), min(block, vocab))


def _in_specs(arrays: _Arrays, blocks, plan: Plan, order) -> list[pl.BlockSpec]:
  token_block, vocab_block = blocks
  width = arrays.hidden.shape[1]
  by_token = lambda *grid: (order(*grid)[0], 0)
  by_vocab = lambda *grid: (0, order(*grid)[1])
  head = pl.BlockSpec((width, vocab_block), by_vocab)
  if plan.tied:
    head = pl.BlockSpec((vocab_block, width), lambda *grid: by_vocab(*grid)[::-1])
  column = pl.BlockSpec((token_block, 1), by_token)
  return [
    pl.BlockSpec((token_block, width), by_token),
    head,
    pl.BlockSpec((1, vocab_block), by_vocab),
    column,
    column,
  ]


def _call(kernel, arrays: _Arrays, *columns, **specs):
  """The kernel on a TPU, the interpreter on a CPU, an error elsewhere."""
  order = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))
  compiled = pl.pallas_call(kernel, compiler_params=order, **specs)
  interpreted = pl.pallas_call(kernel, interpret=True, **specs)
  return lax.platform_dependent(*arrays, *columns, tpu=compiled, cpu=interpreted)
