"""Policy losses, KL penalties, value loss and aggregation.

A policy loss returns `(token_loss, metrics)`: one number a token, and poolable metrics.
`aggregate` turns it into a scalar. What a loss takes says what it is anchored on, and
thereby which correction it goes with (`check_composition`):

  takes          holds the ratio   a correction may
  neither        none              reject and weight
  old_logp       pi / pi_old       reject and weight; in bypass mode reject only
  sampler_logp   pi / mu           reject only

A loss of which that is not true says so itself (`policy_loss`).
"""

from collections.abc import Callable

from tis_jax.losses._aggregation import MODES as MODES
from tis_jax.losses._aggregation import aggregate as aggregate
from tis_jax.losses._aggregation import denominators as denominators
from tis_jax.losses._cispo import cispo as cispo
from tis_jax.losses._cispo import sampler_cispo as sampler_cispo
from tis_jax.losses._composition import call_loss as call_loss
from tis_jax.losses._composition import check_composition as check_composition
from tis_jax.losses._composition import uses_sampler_ratio as uses_sampler_ratio
from tis_jax.losses._covariance import clip_cov as clip_cov
from tis_jax.losses._covariance import kl_cov as kl_cov
from tis_jax.losses._decoupled import decoupled_ppo as decoupled_ppo
from tis_jax.losses._dppo import dppo as dppo
from tis_jax.losses._dppo import dppo_mask as dppo_mask
from tis_jax.losses._dro import dro as dro
from tis_jax.losses._entropy import entropy as entropy
from tis_jax.losses._gmpo import gmpo as gmpo
from tis_jax.losses._gspo import gspo as gspo
from tis_jax.losses._gspo import gspo_token as gspo_token
from tis_jax.losses._gspo import luspo as luspo
from tis_jax.losses._importance_sampling import (
  importance_sampling as importance_sampling,
)
from tis_jax.losses._kl import KL_KINDS as KL_KINDS
from tis_jax.losses._kl import adaptive_kl_coefficient as adaptive_kl_coefficient
from tis_jax.losses._kl import kl_in_reward as kl_in_reward
from tis_jax.losses._kl import kl_penalty as kl_penalty
from tis_jax.losses._kl import weighted_kl_penalty as weighted_kl_penalty
from tis_jax.losses._m2po import m2po as m2po
from tis_jax.losses._ppo import clipped_surrogate as clipped_surrogate
from tis_jax.losses._ppo import ppo as ppo
from tis_jax.losses._reinforce import reinforce as reinforce
from tis_jax.losses._rollout_is import rollout_is as rollout_is
from tis_jax.losses._sapo import sapo as sapo
from tis_jax.losses._score_centering import score_centering as score_centering
from tis_jax.losses._supervised import cross_entropy as cross_entropy
from tis_jax.losses._topr import topr as topr
from tis_jax.losses._traits import ARGUMENTS as ARGUMENTS
from tis_jax.losses._traits import Traits as Traits
from tis_jax.losses._traits import policy_loss as policy_loss
from tis_jax.losses._traits import traits as traits
from tis_jax.losses._value import value as value
from tis_jax.losses._vespo import vespo as vespo

POLICY_LOSSES: dict[str, Callable] = {
  "cispo": cispo,
  "clip_cov": clip_cov,
  "cross_entropy": cross_entropy,
  "decoupled_ppo": decoupled_ppo,
  "dppo": dppo,
  "dro": dro,
  "gmpo": gmpo,
  "gpg": reinforce,
  "gspo": gspo,
  "gspo_token": gspo_token,
  "importance_sampling": importance_sampling,
  "kl_cov": kl_cov,
  "luspo": luspo,
  "m2po": m2po,
  "ppo": ppo,
  "reinforce": reinforce,
  "rollout_is": rollout_is,
  "sampler_cispo": sampler_cispo,
  "sapo": sapo,
  "topr": topr,
  "vespo": vespo,
}
"""Every policy loss, by the name that a config calls it."""
