"""Entropy bonus."""

import jax
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clean
from tis_jax.numerics.metrics import Metrics, mean


def entropy(
  entropy: ArrayLike, mask: ArrayLike | None = None
) -> tuple[jax.Array, Metrics]:
  """Negative entropy, per token: add it to a policy loss times a small coefficient.

  Args:
    entropy: `[B, T]` entropy of the next-token distribution, in nats, with its gradient
      (`tis_jax.logprobs` returns it beside the log-prob).
    mask: `[B, T]` bool or 0/1; None counts every token.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> entropy(jnp.array([[0.7, 0.1]]), jnp.array([[1, 0]]))[0].tolist()
  [[-0.7, -0.0]]
  """
  mask, entropy = clean(mask, entropy=entropy)
  return -entropy, {"policy/entropy": mean(entropy, mask)}
