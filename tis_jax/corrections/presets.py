"""Chains that have a name in the field, with the defaults of their source."""

from tis_jax.corrections.chain import Chain, chain
from tis_jax.corrections.rejections import reject, veto
from tis_jax.corrections.weights import importance, truncate, zero_outside


def tis(high=2.0) -> Chain:
  """Token-level truncated importance sampling: `w = min(rho_t, high)`.

  Source: Yao, Liu et al. (2025); the token option of verl, SkyRL, slime and TRL.
  """
  return chain(truncate(high, level="token"))


def seq_tis(high=5.0) -> Chain:
  """Sequence-level truncated importance sampling: `w = min(prod rho_t, high)`.

  Source: SkyRL's `tis_ratio_type: sequence`, verl's `rollout_is: sequence` (there 2.0).
  """
  return chain(truncate(high, level="sequence"))


def seq_mis(high=3.0) -> Chain:
  """Sequence-level masked importance sampling: `w = prod rho_t`, kept while <= high.

  Source: Liu, Li et al. (2025); TRL's `sequence_mask`, its default (3.0).
  """
  return chain(reject(high, 0.0, level="sequence"), importance("sequence"))


def icepop(high=5.0, low=0.5) -> Chain:
  """IcePop: the token ratio inside `[low, high]`, 0 outside; nothing leaves the mask.

  Source: arXiv 2510.18855; the bounds are verl's and NeMo-RL's (the paper: 5 and 1/5).
  """
  return chain(zero_outside(high, low, level="token"))


def geometric_mask(high=1.01, low=0.99, veto_low=1e-4) -> Chain:
  """Keeps a sequence whose mean token ratio is in band and that holds no outlier.

  Source: SkyRL's `sequence_mask_metric: geometric`; the veto is verl's of 2025-10.
  """
  return chain(veto(veto_low), reject(high, low, level="geometric"))
