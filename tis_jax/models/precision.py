"""Dtypes: casting a parameter tree, and contractions that accumulate in fp32."""

import jax
import jax.numpy as jnp


def contract(equation: str, x_BS, param):
  """`einsum(equation, x, param)` for every token, accumulated in fp32.

  Rows and positions are merged into one axis `t` of tokens: with two of them the
  gradient of a weight contracts over a pair of axes, which takes XLA on a CPU twice
  the time. The parameter is cast to the dtype of x first, so the activations' dtype
  decides what the matrix units multiply, whatever the weights are stored in.

  Args:
    equation: of einsum, with `t` for the tokens, such as "td,df->tf".
    x_BS: activations [B, S, ...].
    param: nnx.Param.

  Returns:
    [B, S, ...] in the dtype of x.
  """
  x = x_BS.reshape(-1, *x_BS.shape[2:])
  weight = param.get_value().astype(x.dtype)
  product = jnp.einsum(equation, x, weight, preferred_element_type=jnp.float32)
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
