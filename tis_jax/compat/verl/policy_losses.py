"""verl: policy losses by `loss_mode`, and `agg_loss` by `loss_agg_mode`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tis_jax import losses
from tis_jax.compat import options, shared_losses
from tis_jax.compat.arrays import masked_mean
from tis_jax.compat.verl.rollout_correction import check, correction
from tis_jax.numerics.metrics import finalize
from tis_jax.numerics.ratios import ratio

_PEER = "verl"
_AGGREGATION = {
  "token-mean": "token_mean",
  "seq-mean-token-mean": "sequence_mean",
  "seq-mean-token-sum": "sequence_sum",
  "seq-mean-token-sum-norm": "sequence_sum_constant",
  "token-sum": "token_sum",
}
_DEFAULTS = {
  "loss_mode": "vanilla",
  "loss_agg_mode": "token-mean",
  "loss_scale_factor": None,
  "clip_ratio": 0.2,
  "clip_ratio_low": 0.2,
  "clip_ratio_high": 0.2,
  "clip_ratio_c": 3.0,
  "tau_pos": 1.0,
  "tau_neg": 1.05,
  "clip_cov_ratio": 0.0002,
  "clip_cov_lb": 1.0,
  "clip_cov_ub": 5.0,
  "kl_cov_ratio": 0.0002,
  "ppo_kl_coef": 0.1,
  "dro_beta": None,
  "rollout_correction": None,
}
_CLIPPED = {"actor/pg_clipfrac": "policy/clipped"}
_DRIFT = {"actor/ppo_kl": "policy/drift_k1"}


def policy_loss(config: Mapping[str, Any] | None = None) -> Callable:
  r"""The policy loss of verl's actor options.

  `loss_mode` is one of vanilla, gspo, sapo, gpg, clip_cov, kl_cov, geo_mean, cispo,
  dppo_tv, dppo_kl, dro, bypass_mode; formulas in `tis_jax.losses`, whose functions
  these are, save verl's own: gspo's log-ratio stops at +10, geo_mean averages over
  empty rows and takes a geometric mean of the weights, gspo and sapo ignore
  `loss_agg_mode`.
  Weights multiply the loss of a token after its clip.

  `clip_ratio` has no effect, as in verl, where low and high have defaults of their own.
  Where verl divides 0 by 0 (no token left) the loss is 0.

  Args:
    config: keys of the actor section: `loss_mode`, `loss_agg_mode`, `clip_ratio_low`,
      `clip_ratio_high`, `clip_ratio_c`, `tau_pos`, `tau_neg`, `clip_cov_ratio`,
      `clip_cov_lb`, `clip_cov_ub`, `kl_cov_ratio`, `ppo_kl_coef`, `dro_beta`,
      `loss_scale_factor`, `rollout_correction` (for bypass_mode); a nested
      `policy_loss` section is read as if its keys stood here.

  Returns:
    `fn(logp, old_logp, advantages, mask, rollout_is_weights=None) -> (loss, metrics)`;
    clip_cov also takes `key`, since it draws the tokens that it drops.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = policy_loss({"clip_ratio_high": 0.28, "loss_agg_mode": "seq-mean-token-sum"})
  >>> logp = jnp.log(jnp.array([[1.5, 0.5]]))
  >>> loss, metrics = fn(logp, jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
  >>> loss
  Array(-1.78, dtype=float32)
  >>> metrics["actor/pg_clipfrac"]
  Array(0.5, dtype=float32)

  Source: verl, `trainer/ppo/core_algos.py` (2026-08).
  """
  cfg = _check(config)
  token_loss = _LOSSES[cfg["loss_mode"]](cfg)

  def fn(logp, old_logp, advantages, mask, rollout_is_weights=None, *, key=None):
    if rollout_is_weights is not None:
      rollout_is_weights = jax.lax.stop_gradient(jnp.asarray(rollout_is_weights))
    valid_BT = jnp.asarray(mask) != 0
    extra = {} if cfg["loss_mode"] != "clip_cov" else {"key": _require(key)}
    return token_loss(logp, old_logp, advantages, valid_BT, rollout_is_weights, **extra)

  return fn


def _check(config: Mapping[str, Any] | None) -> dict[str, Any]:
  defaults = {**_DEFAULTS, "policy_loss": None}
  cfg = options.read(_PEER, config, defaults)
  cfg = options.read(_PEER, cfg.pop("policy_loss"), cfg)
  options.choice(_PEER, "loss_mode", cfg["loss_mode"], tuple(_LOSSES))
  options.choice(_PEER, "loss_agg_mode", cfg["loss_agg_mode"], tuple(_AGGREGATION))
  for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "ppo_kl_coef"):
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=0)
  cfg["clip_ratio_c"] = options.number(
    _PEER, "clip_ratio_c", cfg["clip_ratio_c"], above=1
  )
  for key in ("tau_pos", "tau_neg", "clip_cov_ratio", "kl_cov_ratio"):
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  for key in ("clip_cov_lb", "clip_cov_ub"):
    cfg[key] = options.number(_PEER, key, cfg[key])
  if cfg["loss_scale_factor"] is not None:
    cfg["loss_scale_factor"] = options.number(
      _PEER, "loss_scale_factor", cfg["loss_scale_factor"], above=0
    )
  if cfg["loss_mode"] == "dro":
    if cfg["dro_beta"] is None:
      raise ValueError(f"{_PEER}: loss_mode 'dro' needs dro_beta")
    cfg["dro_beta"] = options.number(_PEER, "dro_beta", cfg["dro_beta"], above=0)
  return cfg


def _require(key):
  if key is None:
    raise ValueError("verl: loss_mode 'clip_cov' draws tokens at random; pass key=")
  return key


def _reduce(cfg, token_loss_BT, valid_BT, weight_BT, mode=None):
  if weight_BT is not None:
    token_loss_BT = token_loss_BT * jnp.where(valid_BT, weight_BT, 0.0)
  mode = _AGGREGATION[mode or cfg["loss_agg_mode"]]
  length = None
  if mode == "sequence_sum_constant":
    length = cfg["loss_scale_factor"] or valid_BT.shape[1]
  return losses.aggregate(token_loss_BT, valid_BT, mode, length=length)


def _native(loss, names, *, mode=None, zeros=("actor/pg_clipfrac_lower",)):
  """A verl loss that is a native one: its token loss, and which metric is which."""

  def build(cfg):
    def fn(logp, old_logp, advantages, valid_BT, weight_BT):
      token_loss_BT, native = loss(cfg)(logp, old_logp, advantages, valid_BT)
      out = _found(native, names) | dict.fromkeys(zeros, jnp.zeros(()))
      return _reduce(cfg, token_loss_BT, valid_BT, weight_BT, mode), out

    return fn

  return build


def _found(native, names):
  """verl's metrics among the native ones, by the name of either."""
  values = finalize(native)
  return {name: values[theirs] for name, theirs in names.items()}


def _vanilla(cfg):
  return lambda *arrays: losses.ppo(
    *arrays,
    clip_low=cfg["clip_ratio_low"],
    clip_high=cfg["clip_ratio_high"],
    dual_clip=cfg["clip_ratio_c"],
  )


def _sapo(cfg):
  return lambda *arrays: losses.sapo(
    *arrays,
    temperature_positive=cfg["tau_pos"],
    temperature_negative=cfg["tau_neg"],
  )


def _cispo(cfg):
  return lambda *arrays: losses.cispo(
    *arrays, clip_low=cfg["clip_ratio_low"], clip_high=cfg["clip_ratio_high"]
  )


def _gpg(cfg):
  return lambda logp, _, *arrays: losses.reinforce(logp, *arrays)


def _dro(cfg):
  return lambda *arrays: losses.dro(*arrays, beta=cfg["dro_beta"])


def _clean(valid_BT, *arrays):
  return tuple(jnp.where(valid_BT, jnp.asarray(x, jnp.float32), 0.0) for x in arrays)


def _share(hit_BT, valid_BT):
  return masked_mean(hit_BT.astype(jnp.float32), valid_BT)


def _gspo(cfg):
  def fn(logp, old_logp, advantages, valid_BT, weight_BT):
    logp, old_logp, advantages = _clean(valid_BT, logp, old_logp, advantages)
    token_loss_BT, clipped_BT = shared_losses.gspo(
      logp,
      old_logp,
      advantages,
      valid_BT,
      cfg["clip_ratio_low"],
      cfg["clip_ratio_high"],
    )
    metrics = {
      "actor/pg_clipfrac": _share(clipped_BT, valid_BT),
      "actor/ppo_kl": _drift(logp, old_logp, valid_BT),
      "actor/pg_clipfrac_lower": jnp.zeros(()),
    }
    loss = _reduce(cfg, token_loss_BT, valid_BT, weight_BT, "seq-mean-token-mean")
    return loss, metrics

  return fn


def _drift(logp, old_logp, valid_BT):
  return masked_mean(old_logp - jax.lax.stop_gradient(logp), valid_BT)


def _geo_mean(cfg):
  low, high = cfg["clip_ratio_low"], cfg["clip_ratio_high"]

  def fn(logp, old_logp, advantages, valid_BT, weight_BT):
    token_loss_BT, native = losses.gmpo(
      logp, old_logp, advantages, valid_BT, clip_low=low, clip_high=high
    )
    row_B = masked_mean(token_loss_BT, valid_BT, 1)
    if weight_BT is not None:
      log_weight_BT = jnp.log(jnp.where(valid_BT, weight_BT, 1.0) + 1e-10)
      row_B = row_B * jnp.exp(masked_mean(log_weight_BT, valid_BT, 1))
    logp, old_logp, advantages = _clean(valid_BT, logp, old_logp, advantages)
    log_ratio_BT = logp - old_logp
    beyond_BT = (log_ratio_BT < -low) | (log_ratio_BT > high)
    metrics = {
      "actor/pg_clipfrac": _share(beyond_BT & (advantages > 0), valid_BT),
      **_found(native, _DRIFT),
      "actor/pg_clipfrac_lower": _share(beyond_BT & (advantages < 0), valid_BT),
    }
    return row_B.mean(), metrics

  return fn


def _dppo(kind):
  def build(cfg):
    def fn(logp, old_logp, advantages, valid_BT, weight_BT):
      logp, old_logp, advantages = _clean(valid_BT, logp, old_logp, advantages)
      rise_BT, apart_BT = shared_losses.dppo_distance(logp, old_logp, kind)
      above_BT = (rise_BT > 0) & ~(apart_BT <= cfg["clip_ratio_high"])
      below_BT = (rise_BT < 0) & ~(apart_BT <= cfg["clip_ratio_low"])
      dropped_BT = jnp.where(advantages > 0, above_BT, below_BT)
      ratio_BT = ratio(jax.lax.stop_gradient(logp) - old_logp)
      coefficient_BT = jnp.minimum(ratio_BT, cfg["clip_ratio_c"]) * ~dropped_BT
      metrics = {
        "actor/pg_clipfrac": _share(dropped_BT, valid_BT),
        "actor/ppo_kl": _drift(logp, old_logp, valid_BT),
        "actor/pg_clipfrac_lower": jnp.zeros(()),
      }
      token_loss_BT = -advantages * coefficient_BT * logp
      return _reduce(cfg, token_loss_BT, valid_BT, weight_BT), metrics

    return fn

  return build


def _kl_cov(cfg):
  def fn(logp, old_logp, advantages, valid_BT, weight_BT):
    token_loss_BT, _ = losses.kl_cov(
      logp,
      old_logp,
      advantages,
      valid_BT,
      select=cfg["kl_cov_ratio"],
      coefficient=cfg["ppo_kl_coef"],
    )
    distance_BT = jnp.abs(jax.lax.stop_gradient(logp) - old_logp)
    metrics = {"actor/ppo_kl": masked_mean(distance_BT, valid_BT)}
    return _reduce(cfg, token_loss_BT, valid_BT, weight_BT), metrics

  return fn


def _clip_cov(cfg):
  def fn(logp, old_logp, advantages, valid_BT, weight_BT, key):
    token_loss_BT, native = losses.clip_cov(
      logp,
      old_logp,
      advantages,
      valid_BT,
      key=key,
      select=cfg["clip_cov_ratio"],
      covariance_low=cfg["clip_cov_lb"],
      covariance_high=cfg["clip_cov_ub"],
      clip_low=cfg["clip_ratio_low"],
      clip_high=cfg["clip_ratio_high"],
    )
    metrics = _found(native, {"actor/pg_clipfrac": "policy/covariance_clipped"})
    metrics |= _found(native, _DRIFT)
    return _reduce(cfg, token_loss_BT, valid_BT, weight_BT), metrics

  return fn


def _bypass(cfg):
  """The sampler's log-probs stand in `old_logp`; weights passed in are ignored."""
  inner = check(_PEER, cfg["rollout_correction"])
  reinforce = inner["loss_type"] == "reinforce"
  correct = correction({**(cfg["rollout_correction"] or {}), "bypass_mode": True})
  vanilla = _LOSSES["vanilla"](cfg)

  def fn(logp, old_logp, advantages, valid_BT, weight_BT):
    weight_BT, kept_BT, metrics = correct(logp, old_logp, valid_BT)
    if not reinforce:
      loss, loss_metrics = vanilla(logp, old_logp, advantages, kept_BT, None)
      return loss, metrics | loss_metrics
    token_loss_BT, _ = losses.reinforce(logp, advantages, kept_BT)
    gap_BT = old_logp - jax.lax.stop_gradient(logp)
    metrics["actor/ppo_kl"] = masked_mean(gap_BT, kept_BT)
    return _reduce(cfg, token_loss_BT, kept_BT, weight_BT), metrics

  return fn


_LOSSES = {
  "vanilla": _native(
    _vanilla,
    {**_CLIPPED, **_DRIFT, "actor/pg_clipfrac_lower": "policy/dual_clipped"},
    zeros=(),
  ),
  "gspo": _gspo,
  "sapo": _native(
    _sapo,
    _DRIFT,
    mode="seq-mean-token-mean",
    zeros=("actor/pg_clipfrac", "actor/pg_clipfrac_lower"),
  ),
  "gpg": _native(_gpg, {}, zeros=()),
  "clip_cov": _clip_cov,
  "kl_cov": _kl_cov,
  "geo_mean": _geo_mean,
  "cispo": _native(_cispo, {**_CLIPPED, **_DRIFT}),
  "dppo_tv": _dppo("tv"),
  "dppo_kl": _dppo("kl"),
  "dro": _native(_dro, _DRIFT, zeros=()),
  "bypass_mode": _bypass,
}
