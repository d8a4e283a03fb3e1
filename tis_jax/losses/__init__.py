"""Policy losses, KL penalties, value loss and aggregation.

A policy loss returns `(token_loss, metrics)`: one number a token, and poolable metrics.
`aggregate` turns it into a scalar. What a loss takes says what it is anchored on, and
thereby which correction it goes with (`check_composition`):

  takes          holds the ratio   a correction may
  neither        none              reject and weight
  old_logp       pi / pi_old       reject and weight; in bypass mode reject only
  sampler_logp   pi / mu           reject only
"""

from tis_jax.losses.aggregation import aggregate, denominators
from tis_jax.losses.cispo import cispo_loss, sampler_cispo_loss
from tis_jax.losses.composition import (
  call_loss,
  check_composition,
  selects_over_batch,
  uses_sampler_ratio,
)
from tis_jax.losses.covariance import clip_cov_loss, kl_cov_loss
from tis_jax.losses.decoupled import decoupled_ppo_loss
from tis_jax.losses.dppo import dppo_keep, dppo_loss
from tis_jax.losses.dro import dro_loss
from tis_jax.losses.entropy import entropy_loss
from tis_jax.losses.gmpo import gmpo_loss
from tis_jax.losses.gspo import gspo_loss, gspo_token_loss, luspo_loss
from tis_jax.losses.importance_sampling import importance_sampling_loss
from tis_jax.losses.kl import (
  adaptive_kl_coefficient,
  kl_in_reward,
  kl_penalty,
  weighted_kl_penalty,
)
from tis_jax.losses.m2po import m2po_loss
from tis_jax.losses.ppo import ppo_loss
from tis_jax.losses.reinforce import reinforce_loss
from tis_jax.losses.rollout_is import rollout_is_loss
from tis_jax.losses.sapo import sapo_loss
from tis_jax.losses.selection import mean_at_most_mask, top_k_mask
from tis_jax.losses.supervised import cross_entropy_loss
from tis_jax.losses.topr import topr_loss
from tis_jax.losses.value import value_loss
from tis_jax.losses.vespo import vespo_loss

# Every policy loss by the name that a config calls it.
POLICY_LOSSES = {
  "cispo": cispo_loss,
  "clip_cov": clip_cov_loss,
  "cross_entropy": cross_entropy_loss,
  "decoupled_ppo": decoupled_ppo_loss,
  "dppo": dppo_loss,
  "dro": dro_loss,
  "gmpo": gmpo_loss,
  "gpg": reinforce_loss,
  "gspo": gspo_loss,
  "gspo_token": gspo_token_loss,
  "importance_sampling": importance_sampling_loss,
  "kl_cov": kl_cov_loss,
  "luspo": luspo_loss,
  "m2po": m2po_loss,
  "ppo": ppo_loss,
  "reinforce": reinforce_loss,
  "rollout_is": rollout_is_loss,
  "sampler_cispo": sampler_cispo_loss,
  "sapo": sapo_loss,
  "topr": topr_loss,
  "vespo": vespo_loss,
}

__all__ = [
  "POLICY_LOSSES",
  "adaptive_kl_coefficient",
  "aggregate",
  "call_loss",
  "check_composition",
  "cispo_loss",
  "clip_cov_loss",
  "cross_entropy_loss",
  "decoupled_ppo_loss",
  "denominators",
  "dppo_keep",
  "dppo_loss",
  "dro_loss",
  "entropy_loss",
  "gmpo_loss",
  "gspo_loss",
  "gspo_token_loss",
  "importance_sampling_loss",
  "kl_cov_loss",
  "kl_in_reward",
  "kl_penalty",
  "luspo_loss",
  "m2po_loss",
  "mean_at_most_mask",
  "ppo_loss",
  "reinforce_loss",
  "rollout_is_loss",
  "sampler_cispo_loss",
  "sapo_loss",
  "selects_over_batch",
  "top_k_mask",
  "topr_loss",
  "uses_sampler_ratio",
  "value_loss",
  "vespo_loss",
  "weighted_kl_penalty",
]
