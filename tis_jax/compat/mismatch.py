"""The gap between two policies as verl measures it; slime's helper copies the set."""

import jax.numpy as jnp

from tis_jax.compat.arrays import Array, masked_mean, masked_sum
from tis_jax.numerics.ratios import ratio


def mismatch(old_logp: Array, sampler_logp: Array, valid_BT: Array) -> dict[str, Array]:
  """verl's thirteen off-policy metrics, under their bare names.

  Perplexities are means over rows, and a row without tokens counts as perplexity 1;
  `k3_kl` exponentiates without a clamp; `log_ppl_diff` is sampler minus learner in
  log-prob, the opposite of what verl's usage page says. All as in verl.

  Args:
    old_logp: `[B, T]` log-probs of the learner.
    sampler_logp: `[B, T]` log-probs of the sampler.
    valid_BT: bool, the tokens that count.

  >>> out = mismatch(jnp.array([[-1.0]]), jnp.array([[-1.5]]), jnp.array([[True]]))
  >>> out["kl"], out["ppl_ratio"]
  (Array(-0.5, dtype=float32), Array(0.60653067, dtype=float32))
  """
  log_ratio_BT = jnp.where(valid_BT, old_logp - sampler_logp, 0.0)
  learner_B = masked_mean(old_logp, valid_BT, 1)
  sampler_B = masked_mean(sampler_logp, valid_BT, 1)
  difference_B = sampler_B - learner_B
  square_B = ratio(masked_sum(log_ratio_BT, valid_BT, 1)) ** 2
  return {
    "training_ppl": jnp.exp(-learner_B).mean(),
    "training_log_ppl": -learner_B.mean(),
    "kl": masked_mean(-log_ratio_BT, valid_BT),
    "k3_kl": masked_mean(jnp.exp(log_ratio_BT) - log_ratio_BT - 1, valid_BT),
    "rollout_ppl": jnp.exp(-sampler_B).mean(),
    "rollout_log_ppl": -sampler_B.mean(),
    "log_ppl_diff": difference_B.mean(),
    "log_ppl_abs_diff": jnp.abs(difference_B).mean(),
    "log_ppl_diff_max": difference_B.max(),
    "log_ppl_diff_min": difference_B.min(),
    "ppl_ratio": jnp.exp(difference_B).mean(),
    "chi2_token": masked_mean(ratio(log_ratio_BT) ** 2, valid_BT) - 1,
    "chi2_seq": square_B.mean() - 1,
  }
