"""Dtypes: casting and quantising a parameter tree, and products that accumulate in
fp32."""

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.numerics.checks import check_choice

# Axes (of the stacked parameter, after the layers) that a product sums over; every
# other axis keeps a scale of its own.
_CONTRACTED = {
  "query": (1,),
  "key": (1,),
  "value": (1,),
  "out": (1, 2, 3),
  "gate": (1,),
  "up": (1,),
  "down": (1,),
}


def multiply(equation: str, *arrays):
  """`einsum` of arrays of one dtype, accumulated and returned in fp32.

  fp32 arrays are multiplied as fp32: left to themselves, TPUs would round them to bf16
  and GPUs to TF32, and the fp32 learner would be no yardstick for anything.
  """
  exact = arrays[0].dtype == jnp.float32
  return jnp.einsum(
    equation,
    *arrays,
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def contract(equation: str, x_BS, param):
  """`einsum(equation, x, param)` for every token, accumulated in fp32.

  Rows and positions are merged into one axis `t` of tokens: with two of them the
  gradient of a matrix contracts over a pair of axes, which takes XLA on a CPU twice
  the time. The parameter is cast to the dtype of x first, so the activations' dtype
  decides what the matrix units multiply, whatever the params are stored in. A
  quantised parameter (`quantize`) is multiplied as the whole numbers it holds, exact
  even in bf16, and scaled afterwards in fp32.

  Args:
    equation: of einsum, with `t` for the tokens, such as "td,df->tf".
    x_BS: activations [B, S, ...].
    param: nnx.Param of an array or a `qwix.QArray`.

  Returns:
    [B, S, ...] in the dtype of x.
  """
  x = x_BS.reshape(-1, *x_BS.shape[2:])
  weight = param.get_value()
  quantized = hasattr(weight, "qvalue")
  numbers = (weight.qvalue if quantized else weight).astype(x.dtype)
  product = multiply(equation, x, numbers)
  if quantized:
    # One scale an output channel: the contracted axes of `scale` have size 1.
    product = product * weight.scale.reshape(1, *product.shape[1:])
  return product.astype(x.dtype).reshape(*x_BS.shape[:2], *product.shape[1:])


def cast(params, dtype):
  """Every floating array of a parameter tree in `dtype`; others as they are.

  Example:
    >>> cast({"w": jnp.ones(2), "n": jnp.arange(2)}, jnp.bfloat16)["w"].dtype
    dtype(bfloat16)
  """

  def one(x):
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(one, params)


QUANTIZED = ("int8", "int4", "float8")
"""What `quantize` makes."""


def quantize(params: nnx.State, dtype: str) -> nnx.State:
  """The matrices of every layer in few bits, one fp32 scale an output channel.

  w is kept as round(w / s) with s = max|w| over the inputs of a channel, divided by
  127.5 for int8 and by 7.5 for int4; for float8 (e4m3) by 448, and rounded to its 3
  bits of mantissa. Embedding, head, norms and biases stay as they
  are: they are small, and the head's rounding goes straight into the log-probs.

  Args:
    params: of a decoder, in any floating dtype.
    dtype: one of `QUANTIZED`.

  Returns:
    The tree with a `qwix.QArray` for each matrix; the decoder's graph runs it as it is.

  Raises:
    ValueError: another dtype.
    ImportError: qwix is not installed.
  """
  check_choice("dtype", dtype, QUANTIZED)
  try:
    import qwix
  except ImportError as error:
    raise ImportError(
      f"{dtype} params need qwix: pip install 'tis_jax[quant]'"
    ) from error

  quantized = []
  for path, variable in nnx.to_flat_state(params):
    if (contracted := _CONTRACTED.get(str(path[-1]))) is not None:
      weight = variable.get_value()
      channels = sorted(set(range(weight.ndim)) - set(contracted))
      variable = variable.replace(
        qwix.quantize(
          weight.astype(jnp.float32),
          jnp.dtype(jnp.float8_e4m3fn if dtype == "float8" else dtype),
          channelwise_axes=tuple(channels),
        )
      )
    quantized.append((path, variable))
  return nnx.from_flat_state(quantized)
