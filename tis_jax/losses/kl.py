"""KL penalties against a reference policy."""

import jax.numpy as jnp

from tis_jax.losses._inputs import clamped_log_ratio, prepare

KL_KINDS = ("k1", "k2", "k3", "abs")


def kl_penalty(logp, ref_logp, kind="k3", mask=None):
  """Per-token estimate of KL(policy || reference) from tokens the policy sampled.

  With `d = logp - ref_logp`:

    k1   d                     unbiased, signed; its gradient as a loss is 0 on average
    k2   d^2 / 2               biased, gradient unbiased: use it in a loss
    k3   exp(-d) - 1 + d       unbiased, non-negative; its gradient is that of the
                               opposite KL
    abs  |d|
  """
  mask, _, logp, ref_logp = prepare(mask, None, logp=logp, ref_logp=ref_logp)
  difference = clamped_log_ratio(logp, ref_logp)
  if kind == "k1":
    return difference
  if kind == "k2":
    return 0.5 * difference**2
  if kind == "k3":
    return jnp.expm1(-difference) + difference
  if kind == "abs":
    return jnp.abs(difference)
  raise ValueError(f"kind must be one of {KL_KINDS}, got {kind!r}")
