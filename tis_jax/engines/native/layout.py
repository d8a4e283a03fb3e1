"""The params as decoding wants them: layer by layer, few wide matrices, made once.

Letters in names: D width, V vocabulary, F MLP width, N key heads, G query heads a key
head, K head width, I inputs and O outputs of a matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.engines.native.cpu import multiplied_in
from tis_jax.models.config import DecoderConfig
from tis_jax.models.experts import ExpertMatrix, Experts
from tis_jax.models.params import config_of, dtype_of, flatten
from tis_jax.models.precision import multiply


class LowRank(NamedTuple):
  """An adapter beside a matrix, in the activations' dtype.

  Attributes:
    down_IR: to the rank.
    up_RO: from it.
    scale: of the product.
  """

  down_IR: jax.Array
  up_RO: jax.Array
  scale: jax.Array

  def __call__(self, x_TI: jax.Array) -> jax.Array:
    """scale (x @ down) @ up, fp32."""
    narrow_TR = multiply("ti,ir->tr", x_TI, self.down_IR.astype(x_TI.dtype))
    up_RO = self.up_RO.astype(x_TI.dtype)
    return self.scale * multiply("tr,ro->to", narrow_TR.astype(x_TI.dtype), up_RO)


class Matrix(NamedTuple):
  """A matrix of a layer, its outputs first, see `times`.

  Attributes:
    numbers_OI: floats, or the whole numbers (float8: the rounded ones) that `quantize`
      made.
    scale_O: fp32 scale an output; None of a matrix that is not quantised.
    beside: an adapter; None without.
  """

  numbers_OI: jax.Array
  scale_O: jax.Array | None = None
  beside: LowRank | None = None

  def __call__(self, x_TI: jax.Array) -> jax.Array:
    """x @ numbers * scale: accumulated and scaled in fp32, in the dtype of x."""
    numbers_OI = self.numbers_OI
    if numbers_OI.dtype != jnp.float32:
      numbers_OI = numbers_OI.astype(x_TI.dtype)
    product = times(x_TI.astype(numbers_OI.dtype), numbers_OI)
    if self.scale_O is not None:
      product = product * self.scale_O[None, :]
    if self.beside is not None:
      product = product + self.beside(x_TI)
    return product.astype(x_TI.dtype)


def times(x_TI: jax.Array, matrix_OI: jax.Array) -> jax.Array:
  """x @ matrix.T, fp32 [T, O].

  On a CPU the right operand is packed anew for every product, so the larger one had
  better stand on the left: a decoding step of 16 rows takes a fifth less in fp32. XLA
  would turn the product round to save the transpose, hence the barrier.
  """
  if len(x_TI) >= len(matrix_OI):
    return multiply("ti,oi->to", x_TI, matrix_OI)
  product_OT = multiply("oi,ti->ot", matrix_OI, x_TI)
  return jax.lax.optimization_barrier(product_OT).T


class LayerLayout(NamedTuple):
  """One block.

  Attributes:
    attention_norm: [D].
    heads: queries, keys and values beside each other, O = (N * G + 2 N) * K.
    bias: [O] of `heads`; None without.
    query_norm: [K]; None without.
    key_norm: [K]; None without.
    out: of the attention, I = N * G * K.
    mlp_norm: [D].
    gate_up: gate and up beside each other, O = 2 F; None of a mixture.
    down: I = F; None of a mixture.
    experts: of a mixture; else None.
    attention_post_norm: [D]; None without.
    mlp_post_norm: [D]; None without.
  """

  attention_norm: jax.Array
  heads: Matrix
  bias: jax.Array | None
  query_norm: jax.Array | None
  key_norm: jax.Array | None
  out: Matrix
  mlp_norm: jax.Array
  gate_up: Matrix | None
  down: Matrix | None
  experts: Experts | None = None
  attention_post_norm: jax.Array | None = None
  mlp_post_norm: jax.Array | None = None


class Layout(NamedTuple):
  """A version of the params, ready for decoding.

  Attributes:
    embedding_VD: in the params' dtype.
    layers: one after the other: a product whose matrix is cut out of a stacked array
      is up to nine times slower in bf16 on a CPU.
    final_norm: [D].
    head_VD: in the dtype that logits are multiplied in; where it can be, the embedding.
  """

  embedding_VD: jax.Array
  layers: tuple[LayerLayout, ...]
  final_norm: jax.Array
  head_VD: jax.Array


def layout(graph: nnx.GraphDef, params: nnx.State, head: nnx.State | None = None):
  """The params of a version, laid out for decoding; what they compute is the same.

  Args:
    graph: from `decoder_graph`; its dtype is that of the activations.
    params: of any precision that the decoder takes.
    head: params to take an fp32 head from; None takes that of `params`, in the
      activations' dtype.

  Returns:
    Layout. On a CPU matrices, but for experts, are held in what it multiplies fastest
    in, which is exact, and saves a conversion at every step, see `multiplied_in`;
    elsewhere whole numbers are held as they are.

  Example:
    >>> from tis_jax.models import DecoderConfig, decoder_graph, init_params
    >>> config = DecoderConfig(vocab_size=5, hidden_size=8, intermediate_size=6,
    ...                        num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4)
    >>> made = layout(decoder_graph(config), init_params(config, jax.random.key(0)))
    >>> [made.layers[0].heads.numbers_OI.shape, made.layers[1].gate_up.numbers_OI.shape]
    [(16, 8), (12, 8)]
    >>> made.head_VD is made.embedding_VD
    True
  """
  config, dtype = config_of(graph), dtype_of(graph)
  # What a sharded tree lies on decides, not where this process would put new arrays.
  leaf = jnp.asarray(flatten(params)["embedding"])
  widened = dtype if next(iter(leaf.devices())).platform == "cpu" else None
  made = _layout(config, dtype, widened, params)
  flat, head_dtype = flatten(params if head is None else head), dtype
  if head is not None:
    head_dtype = jnp.dtype(jnp.float32)
  source = flat["embedding" if config.tie_embeddings else "output"]
  if config.tie_embeddings and head is None and source.dtype == dtype:
    made = made._replace(head_VD=made.embedding_VD)
  else:
    made = made._replace(head_VD=_head(config, head_dtype, source))
  if widened and (held := multiplied_in(dtype, config.num_parameters)) != dtype:
    head_VD, layers = _held_in(held, (made.head_VD, made.layers))
    made = made._replace(head_VD=head_VD, layers=layers)
  return made


@functools.partial(jax.jit, static_argnums=0)
def _held_in(dtype, matrices):
  """Matrices in a wider dtype; in one jit with the rounding XLA leaves that out."""

  def one(x):
    if isinstance(x, Matrix):
      return x._replace(numbers_OI=x.numbers_OI.astype(dtype))
    return x

  head_VD, layers = matrices
  is_matrix = lambda x: isinstance(x, Matrix)
  return head_VD.astype(dtype), jax.tree.map(one, layers, is_leaf=is_matrix)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _head(config: DecoderConfig, dtype, source: jax.Array) -> jax.Array:
  return (source if config.tie_embeddings else source.T).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layout(config: DecoderConfig, dtype, widened, params: nnx.State) -> Layout:
  flat = flatten(params)
  layers = tuple(
    _layer(config, dtype, widened, flat, i) for i in range(config.num_layers)
  )
  embedding_VD = flat["embedding"]
  return Layout(embedding_VD, layers, _fp32(flat["final_norm"]), jnp.zeros((0, 0)))


def _layer(config: DecoderConfig, dtype, widened, flat, index: int) -> LayerLayout:
  def of(name):
    return flat[f"layers/{name}"]

  def merged(inputs: int, *names) -> Matrix:
    parts = [_matrix(of(name), index, inputs, dtype, widened) for name in names]
    numbers = jnp.concatenate([part.numbers_OI for part in parts])
    scales = [part.scale_O for part in parts if part.scale_O is not None]
    return Matrix(numbers, jnp.concatenate(scales) if scales else None)

  projections, attention = ("query", "key", "value"), "attention/"
  bias = query_norm = key_norm = None
  if config.attention_bias:
    names = [f"{attention}{name}_bias" for name in projections]
    bias = jnp.concatenate([of(name)[index].reshape(-1) for name in names])
  if config.qk_norm:
    query_norm = _fp32(of("attention/query_norm")[index])
    key_norm = _fp32(of("attention/key_norm")[index])
  post_norms = (None, None)
  if config.post_norms:
    names = ("attention_post_norm", "mlp_post_norm")
    post_norms = tuple(_fp32(of(name)[index]) for name in names)
  gate_up = down = experts = None
  if config.num_experts:
    experts = _experts(of, index, dtype, widened)
  else:
    gate_up, down = merged(1, "mlp/gate", "mlp/up"), merged(1, "mlp/down")
  return LayerLayout(
    attention_norm=_fp32(of("attention_norm")[index]),
    heads=merged(1, *(attention + name for name in projections)),
    bias=bias,
    query_norm=query_norm,
    key_norm=key_norm,
    out=merged(3, "attention/out"),
    mlp_norm=_fp32(of("mlp_norm")[index]),
    gate_up=gate_up,
    down=down,
    experts=experts,
    attention_post_norm=post_norms[0],
    mlp_post_norm=post_norms[1],
  )


def _experts(of, index: int, dtype, widened) -> Experts:
  """The mixture of layer `index`."""

  def one(name) -> ExpertMatrix:
    made = ExpertMatrix.of(jax.tree.map(lambda x: x[index], of(f"mlp/expert_{name}")))
    held = dtype if made.scale_EO is None else widened
    return (
      made if held is None else made._replace(numbers_EIO=made.numbers_EIO.astype(held))
    )

  return Experts(
    of("mlp/router")[index].astype(dtype), *map(one, ("gate", "up", "down"))
  )


def _matrix(weight, index: int, inputs: int, dtype, widened) -> Matrix:
  """Layer `index` of a stacked parameter, its first `inputs` axes merged to I."""
  quantized = hasattr(weight, "qvalue")
  numbers = (weight.qvalue if quantized else weight)[index]
  size = 1
  for length in numbers.shape[:inputs]:
    size *= length
  numbers_OI = numbers.reshape(size, -1).T
  if not quantized:
    return Matrix(numbers_OI.astype(dtype))
  if widened is not None:
    numbers_OI = numbers_OI.astype(widened)
  # One scale an output channel: the contracted axes of `scale` have size 1.
  return Matrix(numbers_OI, _fp32(weight.scale[index].reshape(-1)))


def _fp32(x):
  return x.astype(jnp.float32)
