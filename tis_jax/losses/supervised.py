"""Cross-entropy on given tokens: supervised fine-tuning."""

from tis_jax.diagnostics.metrics import mean
from tis_jax.losses._inputs import prepare


def cross_entropy_loss(logp, mask=None):
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
  mask, _, logp = prepare(mask, None, logp=logp)
  return -logp, {"policy/cross_entropy": mean(-logp, mask)}
