"""Attention as Pallas kernels for a TPU: a block of logits never leaves VMEM.

The grid runs in order on a TPU, so what is summed along its last axis stays in scratch
between steps. Forward keeps of every token the logarithm of its softmax's sum, from
which backward makes the weights again: once summing over slots, for the queries, and
once over tokens.

Letters in names: B rows, N key heads, G query heads a key head, K head width, S tokens,
C slots; inside a kernel S and C are those of a block.

Source: Dao 2023 (arXiv 2307.08691), for the two passes back.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from tis_jax.models.layers import MASKED
from tis_jax.models.tpu_blocks import Marks, Step, walk


def forward(query_BNGKS, keys_BNKC, values_BNKC, marks: Marks):
  """softmax(query . keys / sqrt(K)) . values, and the logarithm of the softmax's sum.

  Products are those of the arrays' one dtype, summed in fp32; logits and weights are
  fp32.

  Returns:
    [B, N, G, K, S] in the dtype of the queries, 0 of a token that sees nothing, and
    [B, N, G, S] fp32.
  """
  shape = query_BNGKS.shape
  out = (
    jax.ShapeDtypeStruct(shape, query_BNGKS.dtype),
    jax.ShapeDtypeStruct((*shape[:3], shape[4]), jnp.float32),
  )
  return walk(
    _forward,
    marks,
    (query_BNGKS,),
    (keys_BNKC, values_BNKC),
    out,
    lambda block: (block.row_GS, block.row_GS, block.query_GKS),
    by_token=True,
  )


def backward(query_BNGKS, keys_BNKC, values_BNKC, marks: Marks, out, log_sum, d_out):
  """Gradients of queries, keys and values, in their dtypes.

  Args:
    query_BNGKS: as they were given to `forward`,
    keys_BNKC: and so on.
    values_BNKC: likewise.
    marks: likewise.
    out: what it gave, [B, N, G, K, S],
    log_sum: and [B, N, G, S].
    d_out: the gradient of `out`.
  """
  # What the weights of a token get back on average changes none of its logits.
  mean_BNGS = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=3)
  of_tokens = (query_BNGKS, d_out, log_sum, mean_BNGS)
  of_slots = (keys_BNKC, values_BNKC)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  (d_query,) = walk(
    _backward_by_token,
    marks,
    of_tokens,
    of_slots,
    (like(query_BNGKS),),
    lambda block: (block.query_GKS,),
    by_token=True,
  )
  d_keys, d_values = walk(
    _backward_by_slot,
    marks,
    of_tokens,
    of_slots,
    (like(keys_BNKC), like(values_BNKC)),
    lambda block: (block.keys_KC, block.keys_KC),
    by_token=False,
  )
  return d_query, d_keys, d_values


def _forward(step: Step, query_GKS, keys_KC, values_KC, out_GKS, log_sum_GS, *kept):
  peak_GS, total_GS, mixed_GKS = kept
  heads = [(g, slice(g, g + 1)) for g in range(query_GKS.shape[0])]

  @pl.when(step.starts)
  def _():
    peak_GS[...] = jnp.full(peak_GS.shape, MASKED, jnp.float32)
    total_GS[...] = jnp.zeros(total_GS.shape, jnp.float32)
    mixed_GKS[...] = jnp.zeros(mixed_GKS.shape, jnp.float32)

  @pl.when(step.works)
  def _():
    seen_CS = step.seen_CS()
    for g, row in heads:
      logits_CS = _logits(query_GKS[g], keys_KC[...], seen_CS)
      peak_1S = jnp.maximum(peak_GS[row], logits_CS.max(axis=0, keepdims=True))
      shrink_1S = jnp.exp(peak_GS[row] - peak_1S)
      # To a token that sees nothing yet all weights are 1. What it sees first takes
      # these sums times exp(MASKED), which is 0.
      weights_CS = jnp.exp(logits_CS - peak_1S)
      more_KS = _multiply("kc,cs->ks", values_KC[...], weights_CS)
      total_GS[row] = total_GS[row] * shrink_1S + weights_CS.sum(axis=0, keepdims=True)
      mixed_GKS[g] = mixed_GKS[g] * shrink_1S + more_KS
      peak_GS[row] = peak_1S

  @pl.when(step.ends)
  def _():
    for g, row in heads:
      sees_1S = peak_GS[row] > MASKED / 2
      total_1S = jnp.where(sees_1S, total_GS[row], 1.0)
      out_GKS[g] = jnp.where(sees_1S, mixed_GKS[g] / total_1S, 0.0).astype(
        out_GKS.dtype
      )
      # Of a token that sees nothing 0, and the weights made again are exp(MASKED), 0.
      log_sum_GS[row] = jnp.where(sees_1S, peak_GS[row] + jnp.log(total_1S), 0.0)


def _backward_by_token(step: Step, *refs):
  *inputs, d_query_GKS, sum_GKS = refs
  keys_KC = inputs[4]

  @pl.when(step.starts)
  def _():
    sum_GKS[...] = jnp.zeros(sum_GKS.shape, jnp.float32)

  @pl.when(step.works)
  def _():
    seen_CS = step.seen_CS()
    for g in range(sum_GKS.shape[0]):
      _, d_product_CS = _again(g, seen_CS, *inputs)
      sum_GKS[g] += _multiply("kc,cs->ks", keys_KC[...], d_product_CS)

  @pl.when(step.ends)
  def _():
    d_query_GKS[...] = sum_GKS[...].astype(d_query_GKS.dtype)


def _backward_by_slot(step: Step, *refs):
  *inputs, d_keys_KC, d_values_KC, keys_sum_KC, values_sum_KC = refs
  query_GKS, d_out_GKS = inputs[:2]

  @pl.when(step.starts)
  def _():
    for sum_KC in (keys_sum_KC, values_sum_KC):
      sum_KC[...] = jnp.zeros(sum_KC.shape, jnp.float32)

  @pl.when(step.works)
  def _():
    seen_CS = step.seen_CS()
    for g in range(query_GKS.shape[0]):
      weights_CS, d_product_CS = _again(g, seen_CS, *inputs)
      keys_sum_KC[...] += _multiply("ks,cs->kc", query_GKS[g], d_product_CS)
      values_sum_KC[...] += _multiply("ks,cs->kc", d_out_GKS[g], weights_CS)

  @pl.when(step.ends)
  def _():
    d_keys_KC[...] = keys_sum_KC[...].astype(d_keys_KC.dtype)
    d_values_KC[...] = values_sum_KC[...].astype(d_values_KC.dtype)


def _again(g, seen_CS, query_GKS, d_out_GKS, log_sum_GS, mean_GS, keys_KC, values_KC):
  """The weights of a head, and the gradient of its queries times keys."""
  row = slice(g, g + 1)
  logits_CS = _logits(query_GKS[g], keys_KC[...], seen_CS)
  weights_CS = jnp.exp(logits_CS - log_sum_GS[row])
  d_weights_CS = _multiply("kc,ks->cs", values_KC[...], d_out_GKS[g])
  scale = query_GKS.shape[1] ** -0.5
  return weights_CS, weights_CS * (d_weights_CS - mean_GS[row]) * scale


def _logits(query_KS, keys_KC, seen_CS):
  scale = query_KS.shape[0] ** -0.5
  return jnp.where(seen_CS, _multiply("kc,ks->cs", keys_KC, query_KS) * scale, MASKED)


# The axis that each of two matrices is summed over.
_SUMMED = {
  "kc,ks->cs": ((0,), (0,)),
  "kc,cs->ks": ((1,), (0,)),
  "ks,cs->kc": ((1,), (1,)),
}


def _multiply(equation: str, first, second):
  """`precision.multiply` as a TPU kernel has it, in the dtype of the first."""
  return lax.dot_general(
    first,
    second.astype(first.dtype),
    (_SUMMED[equation], ((), ())),
    precision=lax.Precision.HIGHEST if first.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
