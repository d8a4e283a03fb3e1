"""The critic's loss."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tis_jax.losses._inputs import clean
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, fraction, mean
from tis_jax.numerics.ratios import clip_within


def value(
  values: ArrayLike,
  old_values: ArrayLike,
  returns: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  clip: float | None = 0.2,
) -> tuple[jax.Array, Metrics]:
  """Clipped squared error of a value function, per token.

    loss = max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

  Args:
    values: `[B, T]` values of the current critic; carries the gradient.
    old_values: `[B, T]` values at the start of the update, those `gae` was given.
    returns: `[B, T]` targets, as `gae` returns them.
    mask: `[B, T]` bool or 0/1; None trains every token.
    clip: how far a value may move from the old one before the gradient stops; None
      leaves it free.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; poolable metrics.

  Raises:
    ValueError: a wrong shape or dtype, or a negative clip.

  >>> import jax.numpy as jnp
  >>> values, old_values = jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0]])
  >>> value(values, old_values, jnp.array([[2.0, 1.0]]))[0].round(2).tolist()
  [[0.5, 0.32]]

  References: Schulman et al. 2017, arXiv:1707.06347, and OpenAI's implementation.
  """
  if clip is not None:
    check_number("clip", clip, at_least=0)
  mask, values, old_values, returns = clean(
    mask, values=values, old_values=old_values, returns=returns
  )
  free = (values - returns) ** 2
  if clip is None:
    loss, clipped = free, jnp.zeros(mask.shape, bool)
  else:
    bounded = clip_within(values, old_values - clip, old_values + clip)
    bounded = (bounded - returns) ** 2
    loss, clipped = jnp.maximum(free, bounded), bounded > free
  metrics: Metrics = {
    "value/error_squared": mean(free, mask),
    "value/mean": mean(values, mask),
    "value/return": mean(returns, mask),
    "value/clipped": fraction(clipped, mask),
  }
  return 0.5 * loss, metrics
