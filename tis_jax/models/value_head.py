"""A critic on the decoder: one number a token, from the final hidden state."""

import jax
import jax.numpy as jnp
from flax import nnx


class ValueHead(nnx.Module):
  """Linear value head: `V_t = hidden_t . weight + bias`, in fp32.

  It starts at zero, so that the first advantages are the returns themselves rather than
  noise, and the first update moves the head and not the decoder under it. Train it with
  `tis_jax.losses.value` on the returns of `tis_jax.advantages.gae`.

  Args:
    hidden_size: width D of the decoder's hidden states.
    param_dtype: of the parameters.

  Example:
    >>> head = ValueHead(4)
    >>> head(jnp.ones((2, 3, 4), jnp.bfloat16)).shape
    (2, 3)
  """

  def __init__(self, hidden_size: int, *, param_dtype=jnp.float32):
    self.weight = nnx.Param(jnp.zeros((hidden_size,), param_dtype))
    self.bias = nnx.Param(jnp.zeros((), param_dtype))

  def __call__(self, hidden_BSD: jax.Array) -> jax.Array:
    """Values `[B, S]`, fp32, of hidden states `[B, S, D]` in any float dtype."""
    product = jnp.einsum(
      "bsd,d->bs",
      hidden_BSD.astype(jnp.float32),
      self.weight[...].astype(jnp.float32),
      precision="highest",
    )
    return product + self.bias[...].astype(jnp.float32)
