"""The metrics that the ratio losses share."""

import jax
import jax.numpy as jnp

from tis_jax.numerics.metrics import Metrics, maximum, mean, minimum
from tis_jax.numerics.ratios import clamp_log, k1, k3


def ratio_metrics(log_ratio, mask) -> Metrics:
  """How far the policy has drifted from the loss's anchor, over the mask.

  `policy/ratio` and its extremes, and the two estimates of KL(anchor || policy) that a
  sample from the anchor allows: k1 (signed, unbiased) and k3 (non-negative, unbiased).
  """
  log_ratio = clamp_log(jax.lax.stop_gradient(log_ratio))
  ratio = jnp.exp(log_ratio)
  return {
    "policy/ratio": mean(ratio, mask, pivot=1.0),
    "policy/ratio_max": maximum(ratio, mask),
    "policy/ratio_min": minimum(ratio, mask),
    "policy/drift_k1": mean(k1(log_ratio), mask),
    "policy/drift_k3": mean(k3(log_ratio), mask),
  }
