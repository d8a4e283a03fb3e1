"""Cross-entropy on given tokens: supervised fine-tuning."""

import jax
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clean
from tis_jax.numerics.metrics import Metrics, mean


def cross_entropy(
  logp: ArrayLike, mask: ArrayLike | None = None
) -> tuple[jax.Array, Metrics]:
  """Supervised fine-tuning, per token: `loss = -logp`.

  Args:
    logp: `[B, T]` log-probs of the target tokens, in nats; carries the gradient.
    mask: `[B, T]` bool or 0/1; None trains every token.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> cross_entropy(jnp.array([[-0.5, -2.0]]), jnp.array([[1, 0]]))[0].tolist()
  [[0.5, 0.0]]
  """
  mask, logp = clean(mask, logp=logp)
  return -logp, {"policy/cross_entropy": mean(-logp, mask)}
