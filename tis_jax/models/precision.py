"""Dtypes: casting a parameter tree, and contractions that accumulate in fp32."""

import jax
import jax.numpy as jnp


def contract(equation: str, x, param):
  """`einsum(equation, x, param)` in the dtype of x, accumulated in fp32.

  The parameter is cast to the dtype of x first, so the activations' dtype decides what
  the matrix units multiply, whatever the weights are stored in.
  """
  weight = param.get_value()
  product = jnp.einsum(
    equation, x, weight.astype(x.dtype), preferred_element_type=jnp.float32
  )
  return product.astype(x.dtype)


def cast(params, dtype):
  """Every floating array of a parameter tree in `dtype`; others as they are.

  Example:
    >>> cast({"w": jnp.ones(2), "n": jnp.arange(2)}, jnp.bfloat16)["w"].dtype
    dtype(bfloat16)
  """

  def one(x):
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(one, params)
