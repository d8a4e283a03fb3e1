"""Cross-entropy on given tokens: supervised fine-tuning."""

import jax
from jax.typing import ArrayLike

from tis_jax.diagnostics.metrics import Metrics, mean
from tis_jax.losses._inputs import clean


def cross_entropy_loss(
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
  >>> cross_entropy_loss(jnp.array([[-0.5, -2.0]]), jnp.array([[1, 0]]))[0].tolist()
  [[0.5, 0.0]]
  """
  mask, logp = clean(mask, logp=logp)
  return -logp, {"policy/cross_entropy": mean(-logp, mask)}
