"""A truncation bound chosen for each batch, with its reasons on record."""

import jax
import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import LEVELS, TOKEN_LEVELS, Level, State
from tis_jax.corrections.weights import raw_ratio, set_weight
from tis_jax.numerics.checks import check_choice, check_number, check_order
from tis_jax.numerics.metrics import Metrics, mean, quotient


def adaptive_truncate(
  *,
  level: Level = "sequence",
  low=1.0,
  high=100.0,
  ess_floor=0.3,
  candidates: int = 16,
) -> Stage:
  """Truncated importance sampling with the cap that this batch asks for: `min(rho, C)`.

  C minimises an estimate of the squared error over `candidates` caps, evenly spaced in
  log between `low` and `high`,

    mse(C) = E[|A| (rho - C)+]^2 + E[A^2 min(rho, C)^2] / n,

  a bound on the squared bias that the cap brings plus the variance that it leaves (in
  units of the score function's norm; A is 1 without `advantages=`), among the caps that
  keep the effective sample size `E[w]^2 / E[w^2]` at `ess_floor` or above. n counts
  sequences, or tokens at the token levels: few samples ask for a low cap, many for a
  high one. If no cap reaches the floor, the lowest is taken.

  Its metrics say what was chosen and why: `cap`, the `bias` bound, `variance` and `ess`
  at that cap, and `why/error` (the error alone decided), `why/floor` (the floor lowered
  the cap) or `why/out_of_reach` (no cap reaches the floor: reject, or refresh the
  sampler), which sum to 1.

  Args:
    level: what the ratio is taken over.
    low: the lowest cap, above 0; may be traced.
    high: the highest cap; may be traced.
    ess_floor: the least effective sample size as a share, in [0, 1); may be traced.
    candidates: how many caps are tried, at least 2.

  Returns:
    A stage for `chain`. The cap depends on the batch of the call: choose it before
    splitting the batch into micro-batches.

  Raises:
    ValueError: bounds out of order, too few candidates, or an unknown level.

  Source: the bias of truncation is that of Ionides (2008); choosing the cap so is ours.

  >>> from tis_jax.corrections import chain
  >>> from tis_jax.numerics.metrics import finalize
  >>> old, sampler = jnp.log(jnp.array([[8.0], [1.0], [1.0]])), jnp.zeros((3, 1))
  >>> stage = adaptive_truncate(high=4.0, ess_floor=0.8, candidates=3)
  >>> out = chain(stage)(old, sampler, jnp.ones((3, 1)))
  >>> out.weight[:, 0].tolist()
  [2.0, 1.0, 1.0]
  >>> finalize(out.metrics)["adaptive_truncate/why/floor"]
  Array(1., ...)
  """
  name = "adaptive_truncate"
  check_choice(f"{name}: level", level, LEVELS)
  check_number(f"{name}: low", low, above=0)
  check_number(f"{name}: high", high, above=0)
  check_order(name, low, high)
  check_number(f"{name}: ess_floor", ess_floor, at_least=0, below=1)
  check_number(f"{name}: candidates", candidates, at_least=2)
  thresholds = {"low": low, "high": high, "ess_floor": ess_floor}
  return make_stage(
    _adaptive_truncate,
    makes="weight",
    thresholds=thresholds,
    pools=True,
    level=level,
    candidates=candidates,
  )


def _adaptive_truncate(
  batch: Incoming, state: State, *, low, high, ess_floor, level, candidates
) -> tuple[State, Metrics]:
  raw = raw_ratio(batch, state, level)
  counted, size = _items(batch, state, level)
  share = jnp.linspace(0.0, 1.0, candidates, dtype=raw.dtype)
  caps = low * (high / jnp.asarray(low, raw.dtype)) ** share
  number = _total(counted)

  def at(cap):
    weight = jnp.where(counted, jnp.minimum(raw, cap), 0.0)
    excess = jnp.where(counted, jnp.maximum(raw - cap, 0.0), 0.0) * size
    first, second = _total(weight), _total(weight * weight)
    noise = quotient(_total((weight * size) ** 2), number**2)
    bias = quotient(_total(excess), number)
    return bias, noise, quotient(first, number) * quotient(first, second)

  bias, noise, ess = jax.lax.map(at, caps)
  error = bias**2 + noise
  allowed = ess >= ess_floor
  free, floored = jnp.argmin(error), jnp.argmin(jnp.where(allowed, error, jnp.inf))
  reachable = allowed.any()
  chosen = jnp.where(reachable, floored, 0)
  pick = jax.nn.one_hot(chosen, candidates, dtype=raw.dtype)
  cap = (pick * caps).sum()
  by_floor = reachable & (chosen != free)
  reported = {
    "cap": cap,
    "bias": (pick * bias).sum(),
    "variance": (pick * noise).sum(),
    "ess": (pick * ess).sum(),
    "why/error": reachable & ~by_floor,
    "why/floor": by_floor,
    "why/out_of_reach": ~reachable,
  }
  one = jnp.ones((), bool)
  metrics: Metrics = {name: mean(jnp.asarray(x), one) for name, x in reported.items()}
  metrics["high"] = state.fraction(raw > cap)
  return set_weight(batch, state, raw, jnp.minimum(raw, cap), level), metrics


def _items(batch: Incoming, state: State, level: Level):
  """What is sampled, once each, and the size of its advantage."""
  counted = batch.known & state.mask
  if batch.advantages is None:
    size = jnp.ones_like(batch.log_ratio[:, :1])
  else:
    size = jnp.abs(jnp.where(counted, batch.advantages, 0.0))
    if level not in TOKEN_LEVELS:
      size = batch.unit_mean(size, state, level)
  if level in TOKEN_LEVELS:
    return counted, size
  return batch.units(counted, level), size


def _total(x: jax.Array) -> jax.Array:
  return x.sum(axis=1, dtype=jnp.promote_types(jnp.float32, x.dtype)).sum()
