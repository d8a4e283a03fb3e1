"""Corrections that know how old the weights were that sampled each token.

A token's ratio has two parts: a numeric one (two engines, two precisions, the same
weights) and a stale one (the learner has moved since). They want different bounds. A
large numeric ratio is a defect, a large stale one is the price of asynchrony.
"""

import jax
import jax.numpy as jnp

from tis_jax.corrections import ratios
from tis_jax.corrections.batch import Batch
from tis_jax.corrections.bounds import check_bound, check_choice
from tis_jax.corrections.stage import Stage
from tis_jax.corrections.state import State, reject_where
from tis_jax.diagnostics.metrics import Metrics, fraction, mean


def truncate_parts(numeric=2.0, stale=5.0) -> Stage:
  """Token weights with a cap of its own for each part of the ratio.

  With `version_logp=`, the learner's own log-prob at the version that sampled a token,
  the parts are known: `w = min(pi_v / mu, numeric) min(pi_old / pi_v, stale)`. Without
  it, `versions=` tells the tokens of the current version, whose ratio is all numeric,
  from older ones, whose ratio holds both parts and gets both caps: `numeric * stale`.

  Args:
    numeric: the cap on the numeric part, above 0; may be traced.
    stale: the cap on the stale part, above 0; may be traced.

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
  check_bound("truncate_parts", "numeric", numeric)
  check_bound("truncate_parts", "stale", stale)
  thresholds = {"numeric": numeric, "stale": stale}
  return Stage(_truncate_parts, thresholds, "truncate_parts", "weight")


def reject_stale(limit, *, level: str = "token") -> Stage:
  """Drops what was sampled by weights more than `limit` versions old.

  Args:
    limit: the largest staleness kept, in versions, at least 0; may be traced.
    level: "token" drops tokens (a rollout interrupted by a weight update keeps its
      fresh tail), "sequence" drops a sequence by its oldest token.

  Returns:
    A stage for `chain`; needs `versions=` and `learner_version=`.

  Raises:
    ValueError: a negative limit, or another level.

  Source: `max_head_offpolicyness` of AReaL, `max_off_policy_steps` of prime-rl, here by
  token.

  >>> from tis_jax.corrections import chain
  >>> zeros = jnp.zeros((1, 3))
  >>> chain(reject_stale(1))(zeros, zeros, jnp.ones((1, 3)), learner_version=7,
  ...   versions=jnp.array([[5, 6, 7]])).mask.tolist()
  [[False, True, True]]
  """
  check_bound("reject_stale", "limit", limit, above=-5e-324)
  check_choice("reject_stale", "level", level, ("token", "sequence"))
  return Stage(
    _reject_stale,
    {"limit": limit},
    "reject_stale",
    "mask",
    (("level", level),),
    needs=("versions", "learner_version"),
  )


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
  logp, sampler_logp = jax.lax.stop_gradient(
    (ratios.as_float(logp), ratios.as_float(sampler_logp))
  )
  age = jnp.asarray(learner_version - versions, logp.dtype)
  share = jnp.clip((age - lag) / jnp.maximum(age, 1.0), 0.0, 1.0)
  between = sampler_logp + share * (logp - sampler_logp)
  return jnp.where(jnp.isnan(sampler_logp), logp, between)


def _truncate_parts(batch: Batch, state: State, *, numeric, stale):
  rho = jnp.exp(batch.log_ratio)
  if batch.version_logp is not None:
    numeric_rho, stale_rho = (
      jnp.exp(ratios.log_ratio(logp, other, batch.known))
      for logp, other in (
        (batch.version_logp, batch.sampler_logp),
        (batch.old_logp, batch.version_logp),
      )
    )
    # A NaN in version_logp alone tells no parts apart: the whole ratio gets both caps.
    apart = ~jnp.isnan(numeric_rho * stale_rho)
    cut = jnp.minimum(numeric_rho, numeric) * jnp.minimum(stale_rho, stale)
    weight = jnp.where(apart, cut, jnp.minimum(rho, numeric * stale))
    high = (numeric_rho > numeric) & apart, (stale_rho > stale) & apart
  elif batch.versions is not None and batch.learner_version is not None:
    old = batch.staleness > 0
    weight = jnp.minimum(rho, jnp.where(old, numeric * stale, numeric))
    high = (rho > numeric) & ~old, (rho > numeric * stale) & old
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


def _reject_stale(batch: Batch, state: State, *, limit, level) -> tuple[State, Metrics]:
  out = (batch.staleness > limit) & state.tokens
  if level == "sequence":
    out = batch.any_token(out)
  metrics: Metrics = {
    "high": state.fraction(out),
    "staleness": mean(batch.staleness, state.mask),
  }
  if level == "sequence":
    metrics["sequences_high"] = fraction(out, batch.units(state.mask))
  return reject_where(state, out, level), metrics
