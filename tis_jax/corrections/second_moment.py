"""Rejection by the second moment of the batch's log-ratio."""

import jax
import jax.numpy as jnp

from tis_jax.corrections.batch import Batch
from tis_jax.corrections.bounds import check_bound
from tis_jax.corrections.stage import Stage
from tis_jax.corrections.state import State, reject_tokens
from tis_jax.diagnostics.metrics import Metrics, mean, mean_of_sums


def reject_second_moment(high) -> Stage:
  """Drops the tokens of largest `(log rho)^2` until the batch mean is at most `high`.

  Far fewer tokens go than a band on the ratio would take, for the same bound on the
  variance.

  Args:
    high: the largest mean of `(log rho)^2` over what is kept, above 0; may be traced.

  Returns:
    A stage for `chain`. It takes the mean over the batch of the call, so micro-batches
    keep other tokens than the batch as a whole; tokens of equal size go together.

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
  check_bound("reject_second_moment", "high", high)
  return Stage(
    _second_moment, {"high": high}, "reject_second_moment", "mask", pools=True
  )


def _second_moment(batch: Batch, state: State, *, high) -> tuple[State, Metrics]:
  counted = batch.known & state.mask
  squares = jnp.where(counted, batch.log_ratio**2, jnp.inf).astype(jnp.float32)
  cutoff = _cutoff(squares, high)
  out = counted & (squares > cutoff)
  number = counted.sum(dtype=jnp.float32)
  moment = jnp.where(counted, squares, 0.0)
  metrics: Metrics = {
    "high": state.fraction(out),
    "moment": mean_of_sums(_sum(moment), _sum(moment * moment), number),
    "cutoff": mean(jnp.sqrt(cutoff), jnp.ones((), bool)),
  }
  return reject_tokens(state, out), metrics


def _cutoff(squares: jax.Array, high) -> jax.Array:
  """The largest cutoff for which the mean of the squares up to it is at most `high`.

  Bisection over the bit patterns of non-negative fp32 numbers, which are ordered as the
  numbers are: exact in at most 31 passes, and nothing is sorted on a sharded axis.
  """

  def passes(bits):
    kept = squares <= jax.lax.bitcast_convert_type(bits, jnp.float32)
    total = _sum(jnp.where(kept, squares, 0.0))
    return total <= high * _sum(kept.astype(jnp.float32))

  def halve(bounds):
    low, high_ = bounds
    middle = low + (high_ - low + 1) // 2
    ok = passes(middle)
    return jnp.where(ok, middle, low), jnp.where(ok, high_, middle - 1)

  top = jax.lax.bitcast_convert_type(jnp.float32(_LARGEST), jnp.int32)
  low = jnp.where(passes(top), top, 0)
  low, _ = jax.lax.while_loop(lambda b: b[0] < b[1], halve, (low, top))
  return jax.lax.bitcast_convert_type(low, jnp.float32)


_LARGEST = 401.0  # A clamped log-ratio has a square of at most 400.


def _sum(x: jax.Array) -> jax.Array:
  return x.sum(axis=1).sum()
