"""Chains that have a name in the field, with the defaults of their source.

A preset is a chain like any other: give it more stages with `chain(preset, ...)`. Only
methods whose formula could be checked against a paper or its code are here.

Bounds are on the ratio, inclusive, and may be traced (a divergence is in nats);
impossible ones raise ValueError as the stages do.

>>> import jax.numpy as jnp
>>> old, sampler = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.3, 0.2]]))
>>> mask = jnp.ones((1, 2), bool)
>>> tis(2.0)(old, sampler, mask).weight.tolist()
[[2.0, 0.5]]
>>> seq_tis(1.2)(old, sampler, mask).weight.tolist()  # the product is 1.5
[[1.2, 1.2]]
>>> token_mask(2.0)(old, sampler, mask).mask.tolist()
[[False, True]]
"""

from tis_jax.corrections.adaptive import adaptive_truncate
from tis_jax.corrections.binary_kl import reject_binary_kl
from tis_jax.corrections.corrector import Chain, chain
from tis_jax.corrections.divergences import (
  reject_divergence,
  reject_negative_divergence,
  reject_probability_difference,
)
from tis_jax.corrections.normalization import normalize, scale_by_ess
from tis_jax.corrections.rejections import reject, veto
from tis_jax.corrections.second_moment import reject_second_moment
from tis_jax.corrections.state import Level
from tis_jax.corrections.weights import importance, truncate, zero_outside


def tis(high=2.0) -> Chain:
  """Token-level truncated importance sampling: `w = min(rho_t, high)`.

  Source: Yao, Liu et al. (2025); the token option of verl, SkyRL, slime and TRL.
  """
  return chain(truncate(high, level="token"))


def seq_tis(high=2.0) -> Chain:
  """Sequence-level truncated importance sampling: `w = min(prod rho_t, high)`.

  Source: verl's `rollout_is: sequence` (2.0) and SkyRL's `tis_ratio_type: sequence`
  (5.0).
  """
  return chain(truncate(high, level="sequence"))


def seq_is() -> Chain:
  """Plain importance sampling over the sequence: unbiased, of unbounded variance."""
  return chain(importance("sequence"))


def seq_mis(high=3.0) -> Chain:
  """Sequence-level masked importance sampling: `w = prod rho_t`, while `<= high`.

  Source: Liu, Li et al., "When speed kills stability" (2025); with the sequence left in
  the denominator, TRL's default (`sequence_mask`, 3.0).
  """
  return chain(reject(high, 0.0, level="sequence"), importance("sequence"))


def normalized_seq_tis(high=2.0) -> Chain:
  """Sequence-level truncated weights that average 1 over the batch's sequences.

  Source: verl's self-normalised example (`rollout_is_batch_normalize`).
  """
  return chain(truncate(high, level="sequence"), normalize("batch", by="sequence"))


def group_normalized_seq_tis(high=2.0) -> Chain:
  """Sequence-level truncated weights that average 1 over each prompt's group."""
  return chain(truncate(high, level="sequence"), normalize("group", by="sequence"))


def icepop(high=5.0, low=0.5) -> Chain:
  """IcePop: the token ratio inside `[low, high]`, 0 outside; nothing leaves the mask.

  Source: arXiv 2510.18855 (there 5 and 1/5); the bounds are verl's and NeMo-RL's.
  """
  return chain(zero_outside(high, low, level="token"))


def kpop(high=0.1) -> Chain:
  """KPop: the token ratio on the tokens within `high` nats of the sampler, both ways.

  prime-rl and AReaL divide by the tokens of the incoming mask: give it to `aggregate`
  as its `denominator_mask`.

  Source: KPop (Guo et al., 2026), in prime-rl's pull request 3283; AReaL's `binary_kl`.
  """
  return chain(reject_binary_kl(high), importance("token"))


def minpro(high=2.0) -> Chain:
  """MinPRO: `w = min(rho_t min_{i<t} rho_i, high)`, the smallest standing for a prefix.

  Source: "A step back: prefix importance ratio stabilizes policy optimization" (arXiv
  2601.22718) for the ratio, which it puts in the place of the token's inside the losses
  of GRPO and CISPO; the cap is that of `tis`.
  """
  return chain(truncate(high, level="min_prefix"))


def token_mask(high=2.0, low=0.5) -> Chain:
  """Drops the tokens whose ratio is out of band; no weight.

  Source: SkyRL's `token_mask_is_threshold_*`, verl's `token_k1`.
  """
  return chain(reject(high, low, level="token"))


def sequence_mask(high=2.0, low=0.5) -> Chain:
  """Drops the sequences whose product is out of band; no weight.

  Source: SkyRL's `sequence_mask_metric: product`, verl's `seq_sum_k1`.
  """
  return chain(reject(high, low, level="sequence"))


def geometric_mask(high=1.01, low=0.99, veto_low=1e-4) -> Chain:
  """Keeps a sequence whose mean token ratio is in band and that holds no outlier.

  Source: SkyRL's `sequence_mask_metric: geometric`; the veto is verl's of 2025-10.
  """
  return chain(veto(veto_low), reject(high, low, level="geometric"))


def length_aware_mask(high=1.5, low=None) -> Chain:
  """Keeps a sequence while `(prod rho_t)^(1 / sqrt(n))` is in band.

  Token noise spreads the log of a product as sqrt(n). A band on the product therefore
  drops the long sequences and one on the mean ratio the short ones; this one accepts
  the same share of every length.
  """
  return chain(reject(high, low, level="root"))


def geometric_mask_tis(high=2.0, mask_high=1.001, mask_low=0.999) -> Chain:
  """A geometric mask, and truncated token weights on what it accepts.

  Source: verl's `decoupled_geo_rs_token_tis`.
  """
  return chain(
    reject(mask_high, mask_low, level="geometric"), truncate(high, level="token")
  )


def seq_mask_tis(high=1.002, low=0.999) -> Chain:
  """A geometric mask, and plain token weights on what it accepts.

  Source: `seq-mask-tis` of NeMo-RL, with its recommended band, and of OpenRLHF.
  """
  return chain(reject(high, low, level="geometric"), importance("token"))


def k3_mask(high=0.01) -> Chain:
  """Drops the sequences whose mean k3 divergence is above `high` nats.

  Source: verl's `decoupled_k3_rs`.
  """
  return chain(reject_divergence(high, kind="k3", reduce="mean"))


def error_mask(high=2.0) -> Chain:
  """Drops the sequences whose tokens are off by more than a mean factor of `high`.

  Source: NeMo-RL's `seq_logprob_error_threshold` (2 in its Nemotron recipes).
  """
  return chain(reject_divergence(high, kind="exp_abs", reduce="mean"))


def tv_mask(high=0.2) -> Chain:
  """Drops the tokens whose probability moved by more than `high` the way it is pushed.

  Needs `advantages=`.

  Source: DPPO-TV (arXiv 2602.04879), prime-rl's default; on the old policy here.
  """
  return chain(reject_probability_difference(high, by_advantage=True))


def opsm(high=0.5) -> Chain:
  """Drops negative-advantage sequences that the learner has left behind.

  Needs `advantages=`.

  Source: DeepSeek-V3.2 (arXiv 2512.02556); the bound is that of TRL's guide.
  """
  return chain(reject_negative_divergence(high))


def m2po(high) -> Chain:
  """Drops the largest squared log-ratios until their batch mean is at most `high`.

  Source: M2PO (arXiv 2510.01161); AReaL's `m2_threshold`, which has no default either.
  """
  return chain(reject_second_moment(high))


def ess_scaled(high=2.0) -> Chain:
  """Sequence-level truncated weights in a step as long as their sample size warrants.

  Source: the ESS-guided step of VCPO (arXiv 2602.17616), without its baseline.
  """
  return chain(truncate(high, level="sequence"), scale_by_ess())


def adaptive(level: Level = "sequence", ess_floor=0.3) -> Chain:
  """Truncated weights with the cap that the batch at hand asks for."""
  return chain(adaptive_truncate(level=level, ess_floor=ess_floor))
