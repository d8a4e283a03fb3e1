"""The product of hidden states and head, and what precision costs where."""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

# Features summed in one go where every digit counts, and the most sums of that kind.
_SPAN = 72
_MOST_SPANS = 8


def product(
  hidden: jax.Array,
  head: jax.Array,
  vocab_dim: int,
  precision: lax.PrecisionLike,
  spans: int = 1,
) -> jax.Array:
  """`[..., V]` fp32 logits, the features summed in `spans` parts and these added up.

  An fp32 sum of n terms in a row is off by about sqrt(n) roundings of what it has
  reached. The final hidden states of real models have a few huge features, so that the
  sum is large from early on: on SmolLM2 one sum over 576 features is off by up to 3e-5
  nats, eight sums over 72 by less than 1e-5.
  """
  width = hidden.shape[-1]
  cuts = [round(i * width / spans) for i in range(spans + 1)]
  parts = (
    lax.dot_general(
      lax.slice_in_dim(hidden, start, stop, axis=hidden.ndim - 1),
      lax.slice_in_dim(head, start, stop, axis=1 - vocab_dim),
      (((hidden.ndim - 1,), (1 - vocab_dim,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    for start, stop in itertools.pairwise(cuts)
  )
  return functools.reduce(operator.add, parts)


def feature_spans(hidden, head, precision: lax.Precision | None) -> int:
  """Parts of the sum over features: more than one where all of fp32 is asked for."""
  exact = precision in (None, lax.Precision.HIGHEST)
  if not exact or compute_dtype(hidden, head) != jnp.float32:
    return 1
  return min(_MOST_SPANS, math.ceil(hidden.shape[-1] / _SPAN))


def compute_dtype(hidden, head):
  """The dtype the products are taken in: bf16 only where both sides are bf16."""
  both_bf16 = hidden.dtype == head.dtype == jnp.bfloat16
  return jnp.dtype(jnp.bfloat16 if both_bf16 else jnp.float32)


def product_precision(asked: lax.Precision | None, dtype) -> lax.Precision:
  """fp32 products are full fp32 unless asked otherwise.

  The default of a TPU is bf16 passes and of a recent GPU is TF32: either costs more
  nats than the mismatch this library is there to measure.
  """
  if asked is not None:
    return asked
  exact = lax.Precision.HIGHEST
  return lax.Precision.DEFAULT if dtype == jnp.bfloat16 else exact


def gradient_dtype(asked: lax.Precision | None, dtype):
  """The dtype of the logits' cotangent in the two backward products.

  bf16 operands keep the products at bf16 speed: the cotangent is rounded to bf16 once,
  the sums stay fp32. `precision=HIGHEST` keeps it fp32.
  """
  return jnp.dtype(jnp.float32) if asked == lax.Precision.HIGHEST else dtype
