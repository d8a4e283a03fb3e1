"""Dtypes: casting and quantising a parameter tree, and products that accumulate in
fp32."""

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.models.adapted import Adapted
from tis_jax.numerics.checks import check_choice

CONTRACTED = {"query": 1, "key": 1, "value": 1, "out": 3, "gate": 1, "up": 1, "down": 1}
"""The matrices of a layer, and how many of their first axes are inputs."""

_OF_EXPERTS = ("expert_gate", "expert_up", "expert_down")


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
  even in bf16, and scaled afterwards in fp32. The product of an adapter beside the
  parameter (`adapt`) is added in fp32.

  Args:
    equation: of einsum, with `t` for the tokens, such as "td,df->tf".
    x_BS: activations [B, S, ...].
    param: nnx.Param of an array, a `qwix.QArray`, or an `Adapted` of one of them.

  Returns:
    [B, S, ...] in the dtype of x.
  """
  x = x_BS.reshape(-1, *x_BS.shape[2:])
  found = param.get_value()
  weight = found.base if isinstance(found, Adapted) else found
  quantized = hasattr(weight, "qvalue")
  numbers = (weight.qvalue if quantized else weight).astype(x.dtype)
  product = multiply(equation, x, numbers)
  if quantized:
    # One scale an output channel: the contracted axes of `scale` have size 1.
    product = product * weight.scale.reshape(1, *product.shape[1:])
  if isinstance(found, Adapted):
    product = product + _beside(equation, x, found)
  return product.astype(x.dtype).reshape(*x_BS.shape[:2], *product.shape[1:])


def _beside(equation: str, x, adapted: Adapted):
  """scale (x A) B, fp32."""
  inputs, _, outputs = equation.replace("->", ",").split(",")
  summed, kept = inputs.removeprefix("t"), outputs.removeprefix("t")
  a, b = (half.astype(x.dtype) for half in (adapted.lora_a, adapted.lora_b))
  narrow = multiply(f"{inputs},{summed}r->tr", x, a).astype(x.dtype)
  return adapted.scale * multiply(f"tr,r{kept}->t{kept}", narrow, b)


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
  bits of mantissa. Embedding, head, norms, biases and routers stay as they
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
    # Layers, experts and outputs: each keeps a scale of its own.
    name, channels = str(path[-1]), None
    if name in _OF_EXPERTS:
      channels = [0, 1, 3]
    elif name in CONTRACTED:
      channels = [0, *range(1 + CONTRACTED[name], variable.get_value().ndim)]
    if channels is not None:
      weight = variable.get_value()
      variable = variable.replace(
        qwix.quantize(
          weight.astype(jnp.float32),
          jnp.dtype(jnp.float8_e4m3fn if dtype == "float8" else dtype),
          channelwise_axes=tuple(channels),
        )
      )
    quantized.append((path, variable))
  return nnx.from_flat_state(quantized)
