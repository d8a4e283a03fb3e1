"""Corrections that know how old the weights were that sampled each token.

A token's ratio has two parts: a numeric one (two engines, two precisions, the same
weights) and a stale one (the learner has moved since). They want different bounds. A
large numeric ratio is a defect, a large stale one is the price of asynchrony.
"""

import jax
import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import State, reject_where
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.numerics.metrics import Metrics, fraction, mean
from tis_jax.numerics.ratios import log_ratio, ratio


def truncate_parts(numeric_high=2.0, stale_high=5.0) -> Stage:
  """Token weights with a cap of its own for each part of the ratio.

  With `version_logp=`, the learner's own log-prob at the version that sampled a token,
  the parts are known:

    w = min(pi_v / mu, numeric_high) min(pi_old / pi_v, stale_high)

  Without it, `versions=` tells the tokens of the current version, whose ratio is all
  numeric, from older ones, whose ratio holds both parts and gets both caps:
  `numeric_high stale_high`.

  Args:
    numeric_high: the cap on the numeric part, above 0; may be traced.
    stale_high: the cap on the stale part, above 0; may be traced.

  Returns:
    A stage for `chain`; needs `version_logp=`, or `versions=` and `learner_version=`.

  Raises:
    ValueError: a cap that is not above 0, or (when called) neither argument.

  >>> from tis_jax.corrections import chain
  >>> old, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.1, 0.1]]))
  >>> out = chain(truncate_parts(2.0, 3.0))(
  ...   old, sampler, jnp.ones((1, 2)), versions=jnp.array([[7, 6]]), learner_version=7)
  >>> out.weight.tolist()
  [[2.0, 6.0]]
  """
  thresholds = {"numeric_high": numeric_high, "stale_high": stale_high}
  for name, value in thresholds.items():
    check_number(f"truncate_parts: {name}", value, above=0)
  return make_stage(_truncate_parts, makes="weight", thresholds=thresholds)


def _truncate_parts(
  batch: Incoming, state: State, *, numeric_high, stale_high
) -> tuple[State, Metrics]:
  rho = ratio(batch.log_ratio)
  both_high = numeric_high * stale_high
  inputs = batch.inputs
  if inputs.version_logp is not None:
    numeric = ratio(log_ratio(inputs.version_logp, inputs.sampler_logp, batch.known))
    stale = ratio(log_ratio(inputs.old_logp, inputs.version_logp, batch.known))
    # A NaN in version_logp alone tells no parts apart: the whole ratio gets both caps.
    apart = ~jnp.isnan(numeric * stale)
    cut = jnp.minimum(numeric, numeric_high) * jnp.minimum(stale, stale_high)
    weight = jnp.where(apart, cut, jnp.minimum(rho, both_high))
    high = (numeric > numeric_high) & apart, (stale > stale_high) & apart
  elif {"versions", "learner_version"} <= inputs.given:
    old = batch.staleness > 0
    weight = jnp.minimum(rho, jnp.where(old, both_high, numeric_high))
    high = (rho > numeric_high) & ~old, (rho > both_high) & old
  else:
    raise ValueError(
      "truncate_parts needs version_logp=, or versions= and learner_version=, to tell"
      " the numeric part of a ratio from the stale one"
    )
  metrics: Metrics = {
    "numeric": state.fraction(high[0]),
    "stale": state.fraction(high[1]),
  }
  return state._replace(weight=jnp.where(batch.known, weight, 1.0)), metrics


def reject_stale(high, *, level: str = "token") -> Stage:
  """Drops what was sampled by params more than `high` versions old.

  Args:
    high: the largest staleness accepted, in versions, at least 0; may be traced.
    level: "token" drops tokens (of a rollout that new params interrupted, the tail
      stays), "sequence" drops a sequence by its oldest token.

  Returns:
    A stage for `chain`; needs `versions=` and `learner_version=`.

  Raises:
    ValueError: a negative bound, or another level.

  Source: `max_head_offpolicyness` of AReaL, `max_off_policy_steps` of prime-rl, here by
  token.

  >>> from tis_jax.corrections import chain
  >>> zeros = jnp.zeros((1, 3))
  >>> chain(reject_stale(1))(zeros, zeros, jnp.ones((1, 3)), learner_version=7,
  ...   versions=jnp.array([[5, 6, 7]])).mask.tolist()
  [[False, True, True]]
  """
  check_number("reject_stale: high", high, at_least=0)
  check_choice("reject_stale: level", level, ("token", "sequence"))
  return make_stage(
    _reject_stale,
    makes="mask",
    thresholds={"high": high},
    needs=("versions", "learner_version"),
    level=level,
  )


def _reject_stale(
  batch: Incoming, state: State, *, high, level
) -> tuple[State, Metrics]:
  out = (batch.staleness > high) & state.tokens
  if level == "sequence":
    out = batch.any_token(out)
  metrics: Metrics = {
    "high": state.fraction(out),
    "staleness": mean(batch.staleness, state.mask),
  }
  if level == "sequence":
    metrics["sequences_high"] = fraction(out, batch.units(state.mask))
  return reject_where(state, out, level), metrics


def interpolate_old_logp(logp, sampler_logp, versions, learner_version, *, lag=1):
  """Stands in for `old_logp` where the learner cannot recompute it.

  `log mu + a (log pi - log mu)` with `a = (v_old - v) / (v_now - v)`, clipped to
  [0, 1]: on the straight line from the sampler's log-prob (version v) to the learner's
  current one (v_now), at `v_old = v_now - lag`. Carries no gradient. Where the sampler
  reported no log-prob (NaN) it is the learner's.

  Args:
    logp: `[B, T]` the learner's current log-probs.
    sampler_logp: `[B, T]`.
    versions: `[B, T]` int, the version that sampled each token.
    learner_version: int scalar, the version of `logp`.
    lag: how many versions before it the update began.

  Returns:
    `[B, T]` fp32.

  Raises:
    ValueError: shapes that differ.

  Source: A-3PO (arXiv 2512.06547), `prox_logp_method: loglinear` in AReaL.

  >>> logp, sampler_logp = jnp.array([[-1.0]]), jnp.array([[-2.0]])
  >>> interpolate_old_logp(logp, sampler_logp, jnp.array([[3]]), 7)
  Array([[-1.25]], dtype=float32)
  """
  for name, x in (("sampler_logp", sampler_logp), ("versions", versions)):
    if jnp.shape(x) != jnp.shape(logp):
      raise ValueError(
        f"{name} has shape {jnp.shape(x)}, but must be {jnp.shape(logp)}"
      )
  logp, sampler_logp = jax.lax.stop_gradient((as_float(logp), as_float(sampler_logp)))
  age = jnp.asarray(learner_version - versions, logp.dtype)
  share = jnp.clip((age - lag) / jnp.maximum(age, 1.0), 0.0, 1.0)
  between = sampler_logp + share * (logp - sampler_logp)
  return jnp.where(jnp.isnan(sampler_logp), logp, between)
