"""SkyRL: policy losses by `policy_loss_type`, and the correction each one takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.compat import options, shared_losses
from tis_jax.compat.arrays import Array, masked_max, masked_mean, masked_min, masked_sum
from tis_jax.compat.sections.skyrl import SECTIONS
from tis_jax.compat.skyrl import off_policy_correction
from tis_jax.losses import clipped_surrogate
from tis_jax.numerics.ratios import magnitude, ratio
from tis_jax.numerics.selection import top_k_mask

_PEER = "SkyRL"
_DEFAULTS = {
  "policy_loss_type": "regular",
  "eps_clip_low": 0.2,
  "eps_clip_high": 0.2,
  "clip_ratio_c": 3.0,
  "loss_reduction": "token_mean",
  "max_seq_len": None,
  "off_policy_correction": None,
  "use_tis": False,
  "tis_imp_ratio_cap": -1.0,
  "sapo": None,
  "cispo": None,
  "dppo": None,
  "kl_cov": None,
  "clip_cov": None,
}
_NESTED = {
  "sapo": {"tau_pos": 1.0, "tau_neg": 1.05},
  "cispo": {
    "cispo_anchor": "old",
    "cispo_eps_clip_low": 1.0,
    "cispo_eps_clip_high": 4.0,
  },
  "dppo": {"dppo_type": "binary_tv", "delta_low": 0.2, "delta_high": 0.2},
  "kl_cov": {"kl_cov_frac": 0.2, "ppo_kl_coef": 1.0},
  "clip_cov": {"clip_ratio": 0.0002, "clip_cov_lb": 1.0, "clip_cov_ub": 5.0},
}
_REDUCTIONS = (
  *("token_mean", "sequence_mean", "seq_mean_token_sum_norm"),
  *("prompt_mean", "token_mean_legacy"),
)
_UNCORRECTED = ("clip_cov", "kl_cov", "cross_entropy", "importance_sampling")
_ANCHORED = ("rollout_is", "dppo")  # on the sampler; cispo as its config says


class _Arrays(NamedTuple):
  """fp32 and clean under the mask."""

  logp: Array
  old_logp: Any  # None when not given: `policy_loss` checks who needs it
  sampler_logp: Any  # as old_logp
  advantages: Array
  valid_BT: Array
  key: Array | None

  def share(self, hit_BT: Array) -> Array:
    return masked_mean(hit_BT.astype(jnp.float32), self.valid_BT)


def policy_loss(config: options.Config = None) -> Callable:
  r"""The policy loss of SkyRL's algorithm options.

  `policy_loss_type` is one of regular, dual_clip, gspo, cispo, sapo, rollout_is, dppo,
  clip_cov, kl_cov, cross_entropy, importance_sampling. The loss is a plain sum over the
  mask: SkyRL divides the advantages beforehand (see `reduction`), so what a correction
  masks stays in the denominator. The weight of `off_policy_correction`, on the ratio of
  old to sampler, multiplies the token's loss after its clip.

  rollout_is, dppo and cispo anchored on the rollout take `old_logp=None`, as SkyRL does
  where it skips the forward pass of the old policy; so does cross_entropy.

  As in SkyRL, clip_cov, kl_cov, cross_entropy and importance_sampling ignore the
  correction; rollout_is and dppo, whose ratio is on the sampler already, accept a
  weight and count the mismatch twice; and clip_cov and kl_cov see the divided
  advantages, which moves every covariance under its bound and lets the penalty outgrow
  the loss. clip_cov, kl_cov and importance_sampling exponentiate without a clamp.

  Args:
    config: keys of `trainer.algorithm`: `policy_loss_type`, `eps_clip_low`,
      `eps_clip_high`, `clip_ratio_c`, `loss_reduction`, `max_seq_len`, the sections
      `off_policy_correction`, `sapo`, `cispo`, `dppo`, `kl_cov`, `clip_cov`, and the
      deprecated `use_tis`, `tis_imp_ratio_cap`.

  Returns:
    `fn(logp, old_logp, advantages, mask, sampler_logp=None) -> (loss, metrics)`;
    clip_cov also takes `key`, since it draws the tokens that it drops.

  Raises:
    ValueError: an unknown key, an impossible value, a weight on cispo anchored on the
      sampler (SkyRL refuses it too), or, at the call, `sampler_logp` or `old_logp`
      missing where the loss or an active correction needs it (without the sampler's
      SkyRL drops the correction in silence).

  >>> fn = policy_loss({"policy_loss_type": "dual_clip"})
  >>> logp = jnp.log(jnp.array([[4.0, 1.0]]))
  >>> loss, metrics = fn(logp, jnp.zeros((1, 2)), -jnp.ones((1, 2)), jnp.ones((1, 2)))
  >>> loss, metrics["clip_ratio"]
  (Array(4., dtype=float32), Array(0., dtype=float32))

  Source: SkyRL, `backends/skyrl_train/utils/ppo_utils.py` (2026-08).
  """
  cfg = _check(config)
  kind, correction = cfg["policy_loss_type"], cfg["off_policy_correction"]
  corrected = off_policy_correction.active(correction) and kind not in _UNCORRECTED
  anchored = _anchored(cfg)
  # dppo falls back on the old policy.
  needs_sampler = corrected or (anchored and kind != "dppo")

  def fn(logp, old_logp, advantages, mask, sampler_logp=None, *, key=None):
    if sampler_logp is None and needs_sampler:
      raise ValueError(
        f"{_PEER}: policy_loss_type {kind!r} with this correction needs sampler_logp"
      )
    skips_old = kind == "cross_entropy" or (anchored and sampler_logp is not None)
    if old_logp is None and (corrected or not skips_old):
      what = (
        "an active off_policy_correction" if corrected else f"policy_loss_type {kind!r}"
      )
      raise ValueError(f"{_PEER}: {what} needs old_logp")
    if kind == "clip_cov" and key is None:
      raise ValueError(f"{_PEER}: clip_cov draws tokens at random; pass key=")
    arrays = _prepare(logp, old_logp, advantages, mask, sampler_logp, key)
    token_loss_BT, metrics = _LOSSES[kind](cfg, arrays)
    kept_BT = arrays.valid_BT
    if corrected:
      log_ratio_BT = arrays.old_logp - arrays.sampler_logp
      weight, kept_BT, more = off_policy_correction.apply(
        correction, log_ratio_BT, kept_BT
      )
      metrics |= more
      if weight is not None:
        token_loss_BT = token_loss_BT * weight
    return masked_sum(token_loss_BT, kept_BT), metrics

  return fn


class TokenLoss(NamedTuple):
  """A loss of SkyRL's before its correction and its sum, which are a learner's.

  Attributes:
    name: the `policy_loss_type`.
    loss: `loss(logp, advantages, mask, old_logp=None, sampler_logp=None, key=None) ->
      (token_loss, metrics)`.
    anchored: whether its ratio starts at the sampler.
    corrected: whether SkyRL applies a correction to it.
  """

  name: str
  loss: Callable
  anchored: bool
  corrected: bool


def token_loss(config: options.Config = None) -> TokenLoss:
  """`policy_loss` by token, of advantages that nothing has divided.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> token_loss({"policy_loss_type": "dppo"}).anchored
  True
  """
  cfg = _check(config)
  kind = cfg["policy_loss_type"]

  def loss(logp, advantages, mask, old_logp=None, sampler_logp=None, key=None):
    x = _prepare(logp, old_logp, advantages, mask, sampler_logp, key)
    return _LOSSES[kind](cfg, x)

  return TokenLoss(kind, loss, _anchored(cfg), kind not in _UNCORRECTED)


def _anchored(cfg: dict[str, Any]) -> bool:
  by_config = cfg["cispo"]["cispo_anchor"] == "rollout"
  kind = cfg["policy_loss_type"]
  return kind in _ANCHORED or (kind == "cispo" and by_config)


def _check(config: options.Config) -> dict[str, Any]:
  cfg = options.read(_PEER, SECTIONS.locate(config, "policy_loss"), _DEFAULTS)
  for section, defaults in _NESTED.items():
    cfg[section] = options.read(f"{_PEER} {section}", cfg[section], defaults)
  options.choice(_PEER, "policy_loss_type", cfg["policy_loss_type"], tuple(_LOSSES))
  options.choice(_PEER, "loss_reduction", cfg["loss_reduction"], _REDUCTIONS)
  options.choice(
    _PEER, "cispo_anchor", cfg["cispo"]["cispo_anchor"], ("old", "rollout")
  )
  options.choice(
    _PEER, "dppo_type", cfg["dppo"]["dppo_type"], ("binary_tv", "binary_kl")
  )
  number = lambda section, key, **bound: section.update(
    {key: options.number(_PEER, key, section[key], **bound)}
  )
  for key in ("eps_clip_low", "eps_clip_high"):
    number(cfg, key, at_least=0)
  number(cfg, "clip_ratio_c", above=1)
  for key in ("tau_pos", "tau_neg"):
    number(cfg["sapo"], key, above=0)
  for key in ("cispo_eps_clip_low", "cispo_eps_clip_high"):
    number(cfg["cispo"], key, at_least=0)
  for key in ("delta_low", "delta_high"):
    number(cfg["dppo"], key, at_least=0)
  for key in _NESTED["kl_cov"]:
    number(cfg["kl_cov"], key, at_least=0)
  number(cfg["clip_cov"], "clip_ratio", above=0)
  for key in ("clip_cov_lb", "clip_cov_ub"):
    number(cfg["clip_cov"], key)
  cfg["off_policy_correction"] = off_policy_correction.check(
    {
      key: cfg.pop(key)
      for key in ("off_policy_correction", "use_tis", "tis_imp_ratio_cap")
    }
  )
  weighted = cfg["off_policy_correction"]["tis_ratio_type"] is not None
  anchored = cfg["cispo"]["cispo_anchor"] == "rollout"
  if cfg["policy_loss_type"] == "cispo" and anchored and weighted:
    raise ValueError(
      f"{_PEER}: cispo_anchor 'rollout' already weighs by the sampler's ratio; "
      "tis_ratio_type would count it twice"
    )
  return cfg


def _prepare(logp, old_logp, advantages, mask, sampler_logp, key) -> _Arrays:
  valid_BT = jnp.asarray(mask) != 0
  clean = lambda x: jnp.where(valid_BT, jnp.asarray(x, jnp.float32), 0.0)
  constant = lambda x: jax.lax.stop_gradient(clean(x))
  return _Arrays(
    clean(logp),
    None if old_logp is None else constant(old_logp),
    None if sampler_logp is None else constant(sampler_logp),
    constant(advantages),
    valid_BT,
    key,
  )


def _clipped(dual: bool):
  def loss(cfg, x):
    token_loss_BT, clipped_BT, _ = clipped_surrogate(
      ratio(x.logp - x.old_logp),
      x.advantages,
      cfg["eps_clip_low"],
      cfg["eps_clip_high"],
      cfg["clip_ratio_c"] if dual else None,
    )
    return token_loss_BT, {"clip_ratio": x.share(clipped_BT)}

  return loss


def _gspo(cfg, x):
  token_loss_BT, clipped_BT = shared_losses.gspo(
    x.logp,
    x.old_logp,
    x.advantages,
    x.valid_BT,
    cfg["eps_clip_low"],
    cfg["eps_clip_high"],
  )
  return token_loss_BT, {"clip_ratio": x.share(clipped_BT)}


def _cispo(cfg, x):
  section = cfg["cispo"]
  anchor = x.old_logp if section["cispo_anchor"] == "old" else x.sampler_logp
  ratio_BT = ratio(jax.lax.stop_gradient(x.logp) - anchor)
  clamped_BT = jnp.clip(
    ratio_BT, 1 - section["cispo_eps_clip_low"], 1 + section["cispo_eps_clip_high"]
  )
  metrics = {
    "clip_ratio": x.share(clamped_BT != ratio_BT),
    "cispo/ratio_mean": masked_mean(ratio_BT, x.valid_BT),
    "cispo/ratio_clamped_mean": masked_mean(clamped_BT, x.valid_BT),
    "cispo/ratio_max": masked_max(ratio_BT, x.valid_BT),
    "cispo/ratio_min": masked_min(ratio_BT, x.valid_BT),
  }
  return -x.advantages * clamped_BT * x.logp, metrics


def _sapo(cfg, x):
  section = cfg["sapo"]
  tau_BT = jnp.where(x.advantages > 0, section["tau_pos"], section["tau_neg"])
  rise_BT = ratio(x.logp - x.old_logp) - 1
  gate_BT = jax.nn.sigmoid(tau_BT * rise_BT) * 4 / tau_BT
  return -gate_BT * x.advantages, {"clip_ratio": jnp.zeros(())}


def _rollout_is(cfg, x):
  ratio_BT = ratio(jax.lax.stop_gradient(x.logp) - x.sampler_logp)
  inside_BT = ratio_BT > 1 - cfg["eps_clip_low"]
  inside_BT &= ratio_BT < 1 + cfg["eps_clip_high"]
  weight_BT = jnp.where(inside_BT, ratio_BT, 0.0)
  return -weight_BT * x.advantages * x.logp, {"clip_ratio": x.share(~inside_BT)}


def _dppo(cfg, x):
  section = cfg["dppo"]
  anchor = x.old_logp if x.sampler_logp is None else x.sampler_logp
  kind = section["dppo_type"].removeprefix("binary_")
  rise_BT, apart_BT = shared_losses.dppo_distance(x.logp, anchor, kind)
  above_BT = (x.advantages > 0) & (rise_BT > 0) & (apart_BT > section["delta_high"])
  below_BT = (x.advantages < 0) & (rise_BT < 0) & (apart_BT > section["delta_low"])
  dropped_BT = above_BT | below_BT
  token_loss_BT = -ratio(x.logp - anchor) * x.advantages
  metrics = {"clip_ratio": x.share(dropped_BT)}
  return jnp.where(dropped_BT, 0.0, token_loss_BT), metrics


def _clip_cov(cfg, x):
  section = cfg["clip_cov"]
  token_loss_BT, clipped_BT, _ = clipped_surrogate(
    jnp.exp(x.logp - x.old_logp),
    x.advantages,
    cfg["eps_clip_low"],
    cfg["eps_clip_high"],
    None,
  )
  covariance_BT = _covariance(x)
  eligible_BT = x.valid_BT & ~clipped_BT & (covariance_BT > section["clip_cov_lb"])
  eligible_BT &= covariance_BT < section["clip_cov_ub"]
  draw_BT = jax.random.uniform(x.key, x.logp.shape)
  dropped_BT = top_k_mask(draw_BT, eligible_BT, _count(section["clip_ratio"], x))
  metrics = {"clip_ratio": x.share(dropped_BT)}
  return jnp.where(dropped_BT, 0.0, token_loss_BT), metrics


def _kl_cov(cfg, x):
  section = cfg["kl_cov"]
  log_ratio_BT = x.logp - x.old_logp
  chosen_BT = top_k_mask(_covariance(x), x.valid_BT, _count(section["kl_cov_frac"], x))
  penalty_BT = section["ppo_kl_coef"] * magnitude(log_ratio_BT)
  token_loss_BT = -x.advantages * jnp.exp(log_ratio_BT)
  token_loss_BT += jnp.where(chosen_BT, penalty_BT, 0.0)
  return token_loss_BT, {"clip_ratio": jnp.zeros(())}


def _covariance(x):
  """Each token's part of the covariance of log-prob and advantage; no gradient."""
  logp = jax.lax.stop_gradient(x.logp)
  rise = x.advantages - masked_mean(x.advantages, x.valid_BT)
  return rise * (logp - masked_mean(logp, x.valid_BT))


def _count(share, x):
  """`max(int(share N), 1)`; the nudge keeps 0.1 of 30 at 3 in fp32."""
  tokens = x.valid_BT.sum(dtype=jnp.float32)
  return jnp.maximum(jnp.floor(share * tokens * (1.0 + 1e-6)), 1.0).astype(jnp.int32)


def _cross_entropy(cfg, x):
  return -x.logp, {"clip_ratio": jnp.zeros(())}


def _importance_sampling(cfg, x):
  ratio_BT = jnp.exp(x.logp - x.old_logp)
  mean = masked_mean(jax.lax.stop_gradient(ratio_BT), x.valid_BT)
  return -ratio_BT * x.advantages, {"importance_ratio": mean}


_LOSSES = {
  "regular": _clipped(dual=False),
  "dual_clip": _clipped(dual=True),
  "gspo": _gspo,
  "cispo": _cispo,
  "sapo": _sapo,
  "rollout_is": _rollout_is,
  "dppo": _dppo,
  "clip_cov": _clip_cov,
  "kl_cov": _kl_cov,
  "cross_entropy": _cross_entropy,
  "importance_sampling": _importance_sampling,
}
