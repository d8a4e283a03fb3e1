"""Rejection by the second moment of the batch's log-ratio."""

import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import State, reject_tokens
from tis_jax.numerics.checks import check_number
from tis_jax.numerics.metrics import Metrics, maximum, mean
from tis_jax.numerics.selection import mean_at_most_mask


def reject_second_moment(high) -> Stage:
  """Drops the tokens of largest `(log rho)^2` until the batch mean is at most `high`.

  Far fewer tokens go than a band on the ratio would take, for the same bound on the
  variance.

  Args:
    high: the largest mean of `(log rho)^2` over what is accepted, above 0; may be
      traced.

  Returns:
    A stage for `chain`. It takes the mean over the batch of the call, so micro-batches
    accept other tokens than the batch as a whole; tokens of equal size go together.

  Raises:
    ValueError: a bound that is not above 0.

  Source: M2PO, "Prosperity before collapse: how far can off-policy RL reach with stale
  data" (arXiv 2510.01161); AReaL's `m2_threshold`.

  >>> from tis_jax.corrections import chain
  >>> old = jnp.array([[0.1, -0.2, 1.0]])
  >>> out = chain(reject_second_moment(0.04))(old, jnp.zeros((1, 3)), jnp.ones((1, 3)))
  >>> out.mask.tolist()
  [[True, True, False]]
  """
  check_number("reject_second_moment: high", high, above=0)
  return make_stage(
    _reject_second_moment, makes="mask", thresholds={"high": high}, pools=True
  )


def _reject_second_moment(
  batch: Incoming, state: State, *, high
) -> tuple[State, Metrics]:
  counted = batch.known & state.mask
  squares = jnp.where(counted, batch.log_ratio**2, 0.0)
  accepted = mean_at_most_mask(squares, counted, high)
  out = counted & ~accepted
  metrics: Metrics = {
    "high": state.fraction(out),
    "moment": mean(squares, counted),
    "cutoff": maximum(jnp.abs(batch.log_ratio), accepted),
  }
  return reject_tokens(state, out), metrics
