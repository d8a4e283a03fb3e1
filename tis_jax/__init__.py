"""Rollout correction for LLM reinforcement learning in JAX.

The functions here take arrays and return arrays. What a run needs beside them stands in
its own packages, imported by name: `tis_jax.models`, `tis_jax.sampler`,
`tis_jax.store`, `tis_jax.learner`, `tis_jax.data`, `tis_jax.runner`.
"""

# Peers' dialects, and the lab with exact ground truth.
from tis_jax import compat as compat
from tis_jax import lab as lab

# Advantages.
from tis_jax.advantages import best_of_group as best_of_group
from tis_jax.advantages import dr_grpo as dr_grpo
from tis_jax.advantages import gae as gae
from tis_jax.advantages import gdpo as gdpo
from tis_jax.advantages import gpg as gpg
from tis_jax.advantages import grpo as grpo
from tis_jax.advantages import maxrl as maxrl
from tis_jax.advantages import opo as opo
from tis_jax.advantages import optimal_token_baseline as optimal_token_baseline
from tis_jax.advantages import pass_at_k as pass_at_k
from tis_jax.advantages import reinforce_plus_plus as reinforce_plus_plus
from tis_jax.advantages import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from tis_jax.advantages import remax as remax
from tis_jax.advantages import rloo as rloo

# Corrections: log-probs of two policies -> weight, mask, metrics.
from tis_jax.corrections import Chain as Chain
from tis_jax.corrections import Correction as Correction
from tis_jax.corrections import Stage as Stage
from tis_jax.corrections import adaptive_truncate as adaptive_truncate
from tis_jax.corrections import chain as chain
from tis_jax.corrections import check_present as check_present
from tis_jax.corrections import clip as clip
from tis_jax.corrections import importance as importance
from tis_jax.corrections import interpolate_old_logp as interpolate_old_logp
from tis_jax.corrections import normalize as normalize
from tis_jax.corrections import presets as presets
from tis_jax.corrections import reject as reject
from tis_jax.corrections import reject_divergence as reject_divergence
from tis_jax.corrections import reject_missing as reject_missing
from tis_jax.corrections import reject_negative_divergence as reject_negative_divergence
from tis_jax.corrections import (
  reject_probability_difference as reject_probability_difference,
)
from tis_jax.corrections import reject_second_moment as reject_second_moment
from tis_jax.corrections import reject_stale as reject_stale
from tis_jax.corrections import scale_by_ess as scale_by_ess
from tis_jax.corrections import truncate as truncate
from tis_jax.corrections import truncate_parts as truncate_parts
from tis_jax.corrections import veto as veto
from tis_jax.corrections import zero_outside as zero_outside

# Metrics that pool exactly.
from tis_jax.diagnostics.metrics import finalize as finalize
from tis_jax.diagnostics.metrics import merge as merge
from tis_jax.diagnostics.metrics import merge_stacked as merge_stacked

# Log-probs.
from tis_jax.logprobs import TokenLogprobs as TokenLogprobs
from tis_jax.logprobs import logprobs_from_logits as logprobs_from_logits
from tis_jax.logprobs import token_logprobs as token_logprobs

# Losses, KL and aggregation.
from tis_jax.losses import adaptive_kl_coefficient as adaptive_kl_coefficient
from tis_jax.losses import aggregate as aggregate
from tis_jax.losses import check_composition as check_composition
from tis_jax.losses import cispo_loss as cispo_loss
from tis_jax.losses import clip_cov_loss as clip_cov_loss
from tis_jax.losses import cross_entropy_loss as cross_entropy_loss
from tis_jax.losses import decoupled_ppo_loss as decoupled_ppo_loss
from tis_jax.losses import denominators as denominators
from tis_jax.losses import dppo_loss as dppo_loss
from tis_jax.losses import dro_loss as dro_loss
from tis_jax.losses import entropy_loss as entropy_loss
from tis_jax.losses import gmpo_loss as gmpo_loss
from tis_jax.losses import gspo_loss as gspo_loss
from tis_jax.losses import gspo_token_loss as gspo_token_loss
from tis_jax.losses import importance_sampling_loss as importance_sampling_loss
from tis_jax.losses import kl_cov_loss as kl_cov_loss
from tis_jax.losses import kl_in_reward as kl_in_reward
from tis_jax.losses import kl_penalty as kl_penalty
from tis_jax.losses import luspo_loss as luspo_loss
from tis_jax.losses import m2po_loss as m2po_loss
from tis_jax.losses import ppo_loss as ppo_loss
from tis_jax.losses import reinforce_loss as reinforce_loss
from tis_jax.losses import rollout_is_loss as rollout_is_loss
from tis_jax.losses import sampler_cispo_loss as sampler_cispo_loss
from tis_jax.losses import sapo_loss as sapo_loss
from tis_jax.losses import topr_loss as topr_loss
from tis_jax.losses import value_loss as value_loss
from tis_jax.losses import vespo_loss as vespo_loss
from tis_jax.losses import weighted_kl_penalty as weighted_kl_penalty
from tis_jax.version import __version__ as __version__
