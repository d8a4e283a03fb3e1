"""verl: policy losses by `loss_mode`, and `agg_loss` by `loss_agg_mode`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.compat import options, shared_losses
from tis_jax.compat.arrays import Array, constant, masked_mean
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.compat.verl import aggregation
from tis_jax.compat.verl.rollout_correction import check, correction
from tis_jax.losses import clipped_surrogate
from tis_jax.numerics.ratios import clamp_log, magnitude, ratio
from tis_jax.numerics.selection import top_k_mask

_PEER = "verl"
_ACTOR = {
  "loss_agg_mode": "token-mean",
  "loss_scale_factor": None,
  "global_batch_info": None,
  "clip_ratio": 0.2,
  "clip_ratio_low": 0.2,
  "clip_ratio_high": 0.2,
  "clip_ratio_c": 3.0,
  "tau_pos": 1.0,
  "tau_neg": 1.05,
}
_POLICY_LOSS = {
  "loss_mode": "vanilla",
  "clip_cov_ratio": 0.0002,
  "clip_cov_lb": 1.0,
  "clip_cov_ub": 5.0,
  "kl_cov_ratio": 0.0002,
  "ppo_kl_coef": 0.1,
  "dro_beta": None,
  "rollout_correction": None,
}
# What a null means where verl's code, or its config, has an answer.
_NULLS = {
  "clip_cov_ratio": 0.0002,
  "clip_cov_lb": 1.0,
  "clip_cov_ub": 5.0,
  "kl_cov_ratio": 0.0002,
  "ppo_kl_coef": 1.0,
}


class _Arrays(NamedTuple):
  """fp32 and clean under the mask; `log_ratio` is raw, each loss clamps as verl."""

  logp: Array
  old_logp: Array
  advantages: Array
  valid_BT: Array
  key: Array | None

  @property
  def log_ratio(self) -> Array:
    return self.logp - self.old_logp

  @property
  def ratio(self) -> Array:
    """With its log clamped to +-20, as in half of verl's losses."""
    return ratio(self.log_ratio)

  def mean(self, x_BT: Array) -> Array:
    x_BT = jax.lax.stop_gradient(x_BT).astype(jnp.float32)
    return masked_mean(x_BT, self.valid_BT)


def policy_loss(config: options.Config = None) -> Callable:
  r"""The policy loss of verl's actor options.

  `loss_mode` is one of vanilla, gspo, sapo, gpg, clip_cov, kl_cov, geo_mean, cispo,
  dppo_tv, dppo_kl, dro, bypass_mode; formulas in `tis_jax.losses`, save verl's own:
  gspo's log-ratio stops at +10; clip_cov, kl_cov, geo_mean and dro do not clamp theirs,
  where the others stop at +-20; geo_mean averages over empty rows and takes a geometric
  mean of the weights; gspo and sapo ignore `loss_agg_mode`. Weights multiply the loss
  of a token after its clip.

  `clip_ratio` counts where low or high is null; they have defaults of their own, 0.2.
  Where verl divides 0 by 0 (no token left) the loss is 0.

  Args:
    config: keys of the actor section: `loss_mode`, `loss_agg_mode`, `clip_ratio_low`,
      `clip_ratio_high`, `clip_ratio_c`, `tau_pos`, `tau_neg`, `clip_cov_ratio`,
      `clip_cov_lb`, `clip_cov_ub`, `kl_cov_ratio`, `ppo_kl_coef`, `dro_beta`,
      `loss_scale_factor`, `global_batch_info`, `rollout_correction` (for bypass_mode);
      a nested `policy_loss` section is read as if its keys stood here.

  Returns:
    `fn(logp, old_logp, advantages, mask, rollout_is_weights=None) -> (loss, metrics)`;
    clip_cov also takes `key`, since it draws the tokens that it drops, and every mode
    but geo_mean the counts of the global batch, as `agg_loss` does.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = policy_loss({"clip_ratio_high": 0.28, "loss_agg_mode": "seq-mean-token-sum"})
  >>> logp = jnp.log(jnp.array([[1.5, 0.5]]))
  >>> loss, metrics = fn(logp, jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
  >>> loss
  Array(-1.78, dtype=float32)
  >>> metrics["actor/pg_clipfrac"]
  Array(0.5, dtype=float32)

  Source: verl, `trainer/ppo/core_algos.py` at 1dda039b9 (2026-08-22).
  """
  cfg = _check(config)
  loss = {"geo_mean": _geo_mean, "bypass_mode": _bypass}.get(
    cfg["loss_mode"], _aggregated
  )

  def fn(
    logp, old_logp, advantages, mask, rollout_is_weights=None, *, key=None, **counts
  ):
    x = _arrays(cfg, logp, old_logp, advantages, mask, key)
    weight_BT = rollout_is_weights
    if weight_BT is not None:
      weight_BT = jax.lax.stop_gradient(jnp.asarray(weight_BT))
    return loss(cfg, x, weight_BT, counts)

  return fn


class TokenLoss(NamedTuple):
  """A loss of verl's before it is aggregated, for a learner that does that itself.

  Attributes:
    name: the `loss_mode`; that inside of `bypass_mode`.
    loss: `loss(logp, old_logp, advantages, mask, key=None) -> (token_loss, metrics)`.
    aggregation: the `loss_agg_mode`.
    length: `loss_scale_factor`, the constant of seq-mean-token-sum-norm, or None.
    bypass: whether `old_logp` is to be the sampler's.
  """

  name: str
  loss: Callable
  aggregation: str
  length: float | None
  bypass: bool


def token_loss(config: options.Config = None) -> TokenLoss:
  """`policy_loss` by token: the weights and the aggregation are the learner's.

  geo_mean has one loss a row: it stands on each of its tokens, for their mean. Its
  weights, which verl takes a geometric mean of, it does not have here.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> token_loss({"loss_mode": "gspo"}).aggregation
  'seq-mean-token-mean'
  """
  cfg = _check(config)
  mode, bypass = cfg["loss_mode"], cfg["loss_mode"] == "bypass_mode"
  if bypass:
    mode = "vanilla" if cfg["loss_type"] == "ppo_clip" else "gpg"
    cfg["loss_mode"] = mode

  def loss(logp, old_logp, advantages, mask, key=None):
    x = _arrays(cfg, logp, old_logp, advantages, mask, key)
    if mode != "geo_mean":
      return _TOKEN_LOSSES[mode](cfg, x)
    row_B, metrics = _geo_mean_rows(cfg, x, None)
    return jnp.broadcast_to(row_B[:, None], x.valid_BT.shape), metrics

  fixed = {**_FIXED, "geo_mean": "seq-mean-token-mean"}
  aggregation = fixed.get(mode, cfg["loss_agg_mode"])
  return TokenLoss(mode, loss, aggregation, cfg["loss_scale_factor"], bypass)


def _arrays(cfg, logp, old_logp, advantages, mask, key) -> _Arrays:
  if cfg["loss_mode"] == "clip_cov" and key is None:
    raise ValueError("verl: loss_mode 'clip_cov' draws tokens at random; pass key=")
  valid_BT = jnp.asarray(mask) != 0
  return _Arrays(
    jnp.where(valid_BT, jnp.asarray(logp, jnp.float32), 0.0),
    constant(old_logp, valid_BT),
    constant(advantages, valid_BT),
    valid_BT,
    key,
  )


def _check(config) -> dict[str, Any]:
  defaults = _ACTOR | _POLICY_LOSS
  cfg = options.read(_PEER, SECTIONS.locate(config, "policy_loss"), defaults)
  modes = (*_TOKEN_LOSSES, "geo_mean", "bypass_mode")
  options.choice(_PEER, "loss_mode", cfg["loss_mode"], modes)
  for key, fallback in _NULLS.items():
    cfg[key] = fallback if cfg[key] is None else cfg[key]
  for key in ("clip_ratio_low", "clip_ratio_high"):
    cfg[key] = cfg["clip_ratio"] if cfg[key] is None else cfg[key]
  for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "ppo_kl_coef"):
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=0)
  cfg["clip_ratio_c"] = options.number(
    _PEER, "clip_ratio_c", cfg["clip_ratio_c"], above=1
  )
  for key in ("tau_pos", "tau_neg", "clip_cov_ratio", "kl_cov_ratio"):
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  for key in ("clip_cov_lb", "clip_cov_ub"):
    cfg[key] = options.number(_PEER, key, cfg[key])
  if cfg["loss_mode"] == "dro":
    if cfg["dro_beta"] is None:
      raise ValueError(f"{_PEER}: loss_mode 'dro' needs dro_beta")
    cfg["dro_beta"] = options.number(_PEER, "dro_beta", cfg["dro_beta"], above=0)
  # Checked whether or not the loss is the bypass: a mistake in it is one.
  correction = check(_PEER, cfg["rollout_correction"])
  cfg["loss_type"] = correction["loss_type"]
  return aggregation.check(cfg)


def _aggregated(cfg, x, weight_BT, counts):
  token_loss_BT, metrics = _TOKEN_LOSSES[cfg["loss_mode"]](cfg, x)
  mode = _FIXED.get(cfg["loss_mode"])
  total = aggregation.aggregate(
    cfg, token_loss_BT, x.valid_BT, mode, weight=weight_BT, **counts
  )
  return total, metrics


def _metrics(x, clipped_BT=None, lower_BT=None, log_ratio_BT=None):
  """verl's three, `ppo_kl` of the log-ratio that the loss used."""
  log_ratio_BT = clamp_log(x.log_ratio) if log_ratio_BT is None else log_ratio_BT
  share = lambda hit_BT: jnp.zeros(()) if hit_BT is None else x.mean(hit_BT)
  return {
    "actor/pg_clipfrac": share(clipped_BT),
    "actor/ppo_kl": x.mean(-log_ratio_BT),
    "actor/pg_clipfrac_lower": share(lower_BT),
  }


def _surrogate(cfg, ratio_BT, x, dual=None):
  low, high = cfg["clip_ratio_low"], cfg["clip_ratio_high"]
  return clipped_surrogate(ratio_BT, x.advantages, low, high, dual)


def _vanilla(cfg, x):
  token_loss_BT, clipped_BT, dual_BT = _surrogate(cfg, x.ratio, x, cfg["clip_ratio_c"])
  return token_loss_BT, _metrics(x, clipped_BT, dual_BT)


def _gspo(cfg, x):
  token_loss_BT, clipped_BT = shared_losses.gspo(
    x.logp,
    x.old_logp,
    x.advantages,
    x.valid_BT,
    cfg["clip_ratio_low"],
    cfg["clip_ratio_high"],
  )
  return token_loss_BT, _metrics(x, clipped_BT, log_ratio_BT=x.log_ratio)


def _sapo(cfg, x):
  tau_BT = jnp.where(x.advantages > 0, cfg["tau_pos"], cfg["tau_neg"])
  gate_BT = jax.nn.sigmoid(tau_BT * (x.ratio - 1)) * (4 / tau_BT)
  return -gate_BT * x.advantages, _metrics(x)


def _gpg(cfg, x):
  return -x.logp * x.advantages, {}


def _cispo(cfg, x):
  ratio_BT = jax.lax.stop_gradient(x.ratio)
  low, high = 1 - cfg["clip_ratio_low"], 1 + cfg["clip_ratio_high"]
  clipped_BT = jnp.clip(ratio_BT, low, high)
  token_loss_BT = -clipped_BT * x.advantages * x.logp
  return token_loss_BT, _metrics(x, clipped_BT != ratio_BT)


def _dro(cfg, x):
  token_loss_BT = -x.logp * x.advantages + 0.5 * cfg["dro_beta"] * x.log_ratio**2
  return token_loss_BT, {"actor/ppo_kl": x.mean(-x.log_ratio)}


def _dppo(kind):
  def loss(cfg, x):
    rise_BT, apart_BT = shared_losses.dppo_distance(x.logp, x.old_logp, kind)
    above_BT = (rise_BT > 0) & ~(apart_BT <= cfg["clip_ratio_high"])
    below_BT = (rise_BT < 0) & ~(apart_BT <= cfg["clip_ratio_low"])
    dropped_BT = jnp.where(x.advantages > 0, above_BT, below_BT)
    ratio_BT = jax.lax.stop_gradient(x.ratio)
    cap = cfg["clip_ratio_c"]
    coefficient_BT = jnp.minimum(ratio_BT, cap) * ~dropped_BT
    # verl's lower fraction: ratios over the cap, of the tokens not dropped.
    metrics = _metrics(x, dropped_BT, (ratio_BT > cap) & ~dropped_BT)
    return -x.advantages * coefficient_BT * x.logp, metrics

  return loss


def _covariance(x):
  logp = jax.lax.stop_gradient(x.logp)
  return (x.advantages - x.mean(x.advantages)) * (logp - x.mean(logp))


def _selected(share, x):
  """`max(floor(share N), 1)`; the nudge keeps 0.1 of 30 at 3 in fp32."""
  tokens = x.valid_BT.sum(dtype=jnp.float32)
  return jnp.maximum(jnp.floor(share * tokens * (1.0 + 1e-6)), 1.0).astype(jnp.int32)


def _kl_cov(cfg, x):
  chosen_BT = top_k_mask(_covariance(x), x.valid_BT, _selected(cfg["kl_cov_ratio"], x))
  # torch's |x| has gradient 0 at 0, where every token is on policy; JAX's has 1.
  distance_BT = magnitude(x.log_ratio)
  penalty_BT = jnp.where(chosen_BT, cfg["ppo_kl_coef"] * distance_BT, 0.0)
  token_loss_BT = -x.advantages * jnp.exp(x.log_ratio) + penalty_BT
  return token_loss_BT, {"actor/ppo_kl": x.mean(distance_BT)}


def _clip_cov(cfg, x):
  ratio_BT = jnp.exp(x.log_ratio)
  token_loss_BT, clipped_BT, _ = _surrogate(cfg, ratio_BT, x)
  covariance_BT = _covariance(x)
  eligible_BT = x.valid_BT & ~clipped_BT
  eligible_BT &= (covariance_BT > cfg["clip_cov_lb"]) & (
    covariance_BT < cfg["clip_cov_ub"]
  )
  lot_BT = jax.random.uniform(x.key, covariance_BT.shape)
  dropped_BT = top_k_mask(lot_BT, eligible_BT, _selected(cfg["clip_cov_ratio"], x))
  metrics = {
    "actor/pg_clipfrac": x.mean(dropped_BT),
    "actor/ppo_kl": x.mean(-x.log_ratio),
  }
  return jnp.where(dropped_BT, 0.0, token_loss_BT), metrics


def _geo_mean(cfg, x, weight_BT, counts):
  """One loss a row; the mean over all of them leaves no room for global counts."""
  row_B, metrics = _geo_mean_rows(cfg, x, weight_BT)
  return row_B.mean(), metrics


def _geo_mean_rows(cfg, x, weight_BT):
  low, high = cfg["clip_ratio_low"], cfg["clip_ratio_high"]
  bounded_BT = jnp.clip(x.log_ratio, -low, high)
  sign_BT = jnp.sign(x.advantages)
  worse_BT = sign_BT * jnp.minimum(sign_BT * x.log_ratio, sign_BT * bounded_BT)
  row_B = -masked_mean(x.advantages, x.valid_BT, 1)
  row_B = row_B * jnp.exp(masked_mean(worse_BT, x.valid_BT, 1))
  if weight_BT is not None:
    log_weight_BT = jnp.log(jnp.where(x.valid_BT, weight_BT, 1.0) + 1e-10)
    row_B = row_B * jnp.exp(masked_mean(log_weight_BT, x.valid_BT, 1))
  beyond_BT = bounded_BT != x.log_ratio
  metrics = _metrics(
    x, beyond_BT & (x.advantages > 0), beyond_BT & (x.advantages < 0), x.log_ratio
  )
  return row_B, metrics


def _bypass(cfg, x, weight_BT, counts):
  """The sampler's log-probs stand in `old_logp`; weights passed in are ignored."""
  correct = correction({**(cfg["rollout_correction"] or {}), "bypass_mode": True})
  weight_BT, kept_BT, metrics = correct(x.logp, x.old_logp, x.valid_BT)
  x = x._replace(valid_BT=kept_BT)
  if cfg["loss_type"] == "ppo_clip":
    loss, loss_metrics = _aggregated(cfg | {"loss_mode": "vanilla"}, x, None, counts)
    return loss, loss_metrics | metrics
  metrics["actor/ppo_kl"] = x.mean(-x.log_ratio)
  loss, _ = _aggregated(cfg | {"loss_mode": "gpg"}, x, weight_BT, counts)
  return loss, metrics


# `loss(cfg, arrays) -> (token loss, metrics)`; geo_mean and bypass_mode are not such.
_TOKEN_LOSSES = {
  "vanilla": _vanilla,
  "gspo": _gspo,
  "sapo": _sapo,
  "gpg": _gpg,
  "clip_cov": _clip_cov,
  "kl_cov": _kl_cov,
  "cispo": _cispo,
  "dppo_tv": _dppo("tv"),
  "dppo_kl": _dppo("kl"),
  "dro": _dro,
}
# These ignore `loss_agg_mode`.
_FIXED = {"gspo": "seq-mean-token-mean", "sapo": "seq-mean-token-mean"}
