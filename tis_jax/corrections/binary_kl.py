"""Rejection by the KL between "this token or another" of the two policies."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.rejections import drop
from tis_jax.corrections.stage import Stage, make_stage
from tis_jax.corrections.state import State
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.checks import check_choice, check_number

_LEAST = 1e-6


def reject_binary_kl(
  high=0.1, *, reduce: Literal["token", "sum", "mean", "max"] = "token"
) -> Stage:
  """Drops tokens whose probability is too far from the sampler's, either way.

  With p and q the probabilities that the learner and the sampler give the token, each
  held in `[1e-6, 1 - 1e-6]`, and `D(p, q) = p log(p / q) + (1 - p) log((1-p) / (1-q))`:

    keeps    max(D(p, q), D(q, p)) <= high

  A band that follows the probability: wide in the ratio for rare tokens, where a ratio
  is noise, and tight for those that either policy is nearly certain of.

  Args:
    high: the upper bound in nats, inclusive; above 0. May be traced.
    reduce: "token" rejects tokens; "sum", "mean" or "max" over the sequence's tokens
      reject sequences.

  Returns:
    A stage for `chain`.

  Raises:
    ValueError: a bound that is not above 0, or an unknown reduction.

  Source: KPop (Guo et al., Ant Group, 2026) with its bound of 0.1, as in prime-rl's
  pull request 3283 and verl's 6800; AReaL's `binary_kl`.

  >>> from tis_jax.corrections import chain
  >>> old = jnp.log(jnp.array([[0.9, 0.02]]))
  >>> sampler = jnp.log(jnp.array([[0.5, 0.01]]))
  >>> chain(reject_binary_kl())(old, sampler, jnp.ones((1, 2))).mask.tolist()
  [[False, True]]
  """
  name = "reject_binary_kl"
  check_number(f"{name}: high", high, above=0)
  check_choice(f"{name}: reduce", reduce, ("token", "sum", "mean", "max"))
  return make_stage(
    _reject_binary_kl, makes="mask", thresholds={"high": high}, reduce=reduce
  )


def _reject_binary_kl(batch: Incoming, state: State, *, high, reduce):
  old, sampler = (
    jnp.where(batch.known, as_float(logp), 0.0)
    for logp in (batch.inputs.old_logp, batch.inputs.sampler_logp)
  )
  apart = jnp.maximum(binary_kl(old, sampler), binary_kl(sampler, old))
  values = jnp.where(batch.known, apart, 0.0)
  if reduce == "sum":
    values = batch.unit_sum(values, state)
  elif reduce == "mean":
    values = batch.unit_mean(values, state)
  elif reduce == "max":
    values = batch.unit_max(values, state)
  level = "token" if reduce == "token" else "sequence"
  return drop(batch, state, values > high, jnp.zeros_like(values, bool), level)


def binary_kl(logp: jax.Array, other_logp: jax.Array) -> jax.Array:
  """`D(p, q)` of `reject_binary_kl`, of log-probs in nats.

  1 - p is never taken of a p: at p = 1 - 1e-5 it would leave two digits in fp32, and
  the log of it as few at p = 1e-5.

  >>> binary_kl(jnp.log(0.9), jnp.log(0.5)).round(4).item()
  0.3681
  """
  logp, other_logp = (
    jnp.clip(x, math.log(_LEAST), math.log1p(-_LEAST)) for x in (logp, other_logp)
  )
  of_token = jnp.exp(logp) * (logp - other_logp)
  return of_token - jnp.expm1(logp) * (_log_rest(logp) - _log_rest(other_logp))


def _log_rest(logp):
  """`log(1 - p)`."""
  rare = logp < -math.log(2)
  return jnp.where(rare, jnp.log1p(-jnp.exp(logp)), jnp.log(-jnp.expm1(logp)))
