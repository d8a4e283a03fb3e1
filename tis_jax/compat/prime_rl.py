"""prime-rl: the losses of `trainer.loss` and the masks that they hold."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.adapters import native_loss
from tis_jax.compat.arrays import (
  Array,
  Correct,
  constant,
  log,
  masked_mean,
  masked_sum,
  prepare,
)
from tis_jax.compat.sections.prime_rl import SECTIONS
from tis_jax.corrections import Chain, chain, reject, reject_probability_difference

VERSION = (
  "4dc2739, the head of pull request 3586 (2026-09-18); `max_importance_ratio`, `ppo`, "
  "`cispo` and `score_centering` as in a later text of it, without `kl_tau`, whose "
  "commit is not known here; with `dppo_mask_*`, `ipo_threshold` or "
  '`type = "default"`, 559b447 (2026-08-21)'
)
_PEER = "prime-rl"
used = SECTIONS.used
_BEFORE = f"{_PEER} (2026-08)"
_DEFAULTS = {
  "ipo": {
    "eps": 0.3,
    "max_importance_ratio": 1e4,
    "adv_tau": 1.0,
    "kl_tau": 0.0,
    "score_centering": False,
  },
  "icepop": {"ratio_low": 0.2, "ratio_high": 5.0, "adv_tau": 1.0},
  "ppo": {
    "ratio_low": 0.8,
    "ratio_high": 1.2,
    "max_importance_ratio": 1e4,
    "adv_tau": 1.0,
  },
  "cispo": {"ratio_low": 0.0, "ratio_high": 5.0, "adv_tau": 1.0},
}
_BEFORE_DEFAULTS = {
  "default": {
    "dppo_mask_low": 0.2,
    "dppo_mask_high": 0.2,
    "adv_tau": 1.0,
    "kl_tau": 1e-3,
  },
  "ipo": {"ipo_threshold": 0.1, "adv_tau": 1.0, "kl_tau": 1e-3},
}
_BEFORE_KEYS = ("dppo_mask_low", "dppo_mask_high", "ipo_threshold")
_KL_LIMIT = 1e30


def correction(config: options.Config = None) -> Correct:
  r"""The mask of prime-rl's loss, between the current policy and the sampler.

  With p the probability each gives the token and r their ratio: `ipo` drops a token
  whose p moved by more than `eps`, `icepop` one whose r is outside [`ratio_low`,
  `ratio_high`]; `ppo` and `cispo` drop none. Before 2026-08-27 `default` dropped a
  token of A > 0 whose p rose by more than `dppo_mask_high`, and one of A <= 0 whose p
  fell by more than `dppo_mask_low`; `eps` was called `ipo_threshold`. prime-rl divides
  by the tokens of the incoming mask.

  Args:
    config: the `trainer.loss` section: `type` (ipo, icepop, ppo, cispo) and the
      settings of that type, or those of the earlier generation, told apart by their
      names: `type` default, `dppo_mask_low`, `dppo_mask_high`, `ipo_threshold`. What
      `policy_loss` alone reads is passed over.

  Returns:
    `fn(logp, sampler_logp, mask, *, advantages=None) -> (None, mask, metrics)`, with
    the current policy's log-probs; `default` needs `advantages`, `[B]` or `[B, T]`, and
    `ppo` needs them for its metric alone. There is no weight: the loss holds the ratio.

  Raises:
    ValueError: an unknown key, an impossible value, or `kl_tau` without a `type`, whose
      default has changed.

  >>> logp, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.5, 0.8]]))
  >>> correction()(logp, sampler, jnp.ones((1, 2), bool))[1]
  Array([[False,  True]], dtype=bool)

  Source: prime-rl, `trainer/rl/loss.py` and `configs/trainer.py`; see `VERSION`.
  """
  cfg = _check(SECTIONS.locate(config, "correction"))

  def correct(logp, sampler_logp, mask, *, advantages=None):
    dtype = jnp.asarray(mask).dtype
    logp, sampler_logp, valid_BT = prepare(logp, sampler_logp, mask)
    if advantages is None and cfg["type"] == "default":
      raise ValueError(f"{_BEFORE}: type 'default' needs advantages=")
    advantage_BT = _per_token(0.0 if advantages is None else advantages, valid_BT)
    accepted_BT = valid_BT & ~_outside(cfg, logp, sampler_logp, advantage_BT)
    metrics = _metrics(cfg, logp, sampler_logp, advantage_BT, valid_BT, accepted_BT)
    return None, accepted_BT.astype(dtype), metrics

  return correct


def policy_loss(config: options.Config = None) -> Callable:
  r"""prime-rl's loss, with r the current policy over the sampler and a = `adv_tau` A.

    ipo      -keep a c(r) + kl_tau (log r)^2    c(r) = min(r, max_importance_ratio),
                                                of gradient c(r) grad(logp)
    icepop   -keep a r
    ppo      -min(a c(r), a clip(c(r), ratio_low, ratio_high))
    cispo    -sg(clip(r, ratio_low, ratio_high)) a logp
    default  -keep a r + kl_tau (log r)^2       before 2026-08-27, as was ipo without c

  The square, of Kimi-K2.5, is not masked by `keep`; main has dropped it since.
  `score_centering` adds, on every token of the mask,

    a sum_v q_v w_v logp_v      w_v = c(p_v / q_v) where |p_v - q_v| <= eps, else 0

  over the tokens v that the sampler could draw, w held constant: it takes the score
  that the sampler expects out of the update.

  Args:
    config: as for `correction`.

  Returns:
    `fn(logp, sampler_logp, advantages, mask) -> (loss, metrics)`, the mean over the
    tokens of the incoming mask. With `score_centering` it also takes
    `support_logp=` and `sampler_support_logp=`, `[B, T, K]`, what the learner (with
    gradient) and the sampler give to the K tokens kept by top-k or top-p; -inf in the
    sampler's is padding.

  Raises:
    ValueError: as for `correction`; or, at the call, the support missing under
      `score_centering` (prime-rl leaves such samples uncentred in silence).

  >>> fn = policy_loss()
  >>> logp, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.5, 0.8]]))
  >>> fn(logp, sampler, jnp.ones((1, 2)), jnp.ones((1, 2)))[0]  # of 0 and -0.9 / 0.8
  Array(-0.5625, dtype=float32)

  Source: prime-rl, `trainer/rl/loss.py`; see `VERSION`. arXiv 2510.18855 (IcePop),
  2506.13585 (CISPO), 2602.04879, 2602.02276, 2609.20807 (score centering).
  """
  cfg = _check(SECTIONS.locate(config, "policy_loss"))
  token_loss = _by_token(cfg)
  centering = cfg.get("score_centering", False)

  def fn(
    logp,
    sampler_logp,
    advantages,
    mask,
    *,
    support_logp=None,
    sampler_support_logp=None,
  ):
    valid_BT = jnp.asarray(mask) != 0
    loss_BT, metrics = token_loss(logp, sampler_logp, advantages, valid_BT)
    if centering:
      if support_logp is None or sampler_support_logp is None:
        raise ValueError(
          f"{_PEER}: score_centering needs support_logp= and sampler_support_logp="
        )
      centre_BT = _centre(cfg, support_logp, sampler_support_logp, valid_BT)
      loss_BT += cfg["adv_tau"] * _per_token(advantages, valid_BT) * centre_BT
    return masked_mean(loss_BT, valid_BT), metrics

  return fn


def update(config: options.Config = None, **_: Any) -> dict[str, Any]:
  """Fields of `tis_jax.learner.Algorithm`; see `tis_jax.compat.update`.

  The loss holds mask and ratio, so the chain only watches.

  Raises:
    ValueError: as for `correction`; `score_centering`, which a run has by settings of
      its own (there the square of `kl_tau` is not added).
  """
  cfg = _check(SECTIONS.locate(config, "policy_loss"))
  if cfg.get("score_centering", False):
    raise ValueError(
      f"{_PEER}: score_centering is not taken over from a configuration: set "
      "algorithm.score_centering and sampler.top_logprobs, with "
      "algorithm.correction.stages 'reject_probability_difference,truncate' for its law"
    )
  takes = ("logp", "sampler_logp", "advantages", "mask")
  return {
    "correct": chain(),
    "loss": native_loss(_PEER, cfg["type"], _by_token(cfg), takes, ratio_to="sampler"),
    "old_logp": "sampler",
    "aggregation": {"mode": "token_mean", "denominator": "sampled", "length": None},
  }


def _by_token(cfg: dict[str, Any]) -> Callable:
  """`fn(logp, sampler_logp, advantages, mask) -> (token_loss, metrics)`, uncentred."""

  def fn(logp, sampler_logp, advantages, mask):
    valid_BT = jnp.asarray(mask) != 0
    logp = jnp.where(valid_BT, jnp.asarray(logp, jnp.float32), 0.0)
    sampler_logp = constant(sampler_logp, valid_BT)
    advantage_BT = _per_token(advantages, valid_BT)
    fixed = jax.lax.stop_gradient(logp)
    keep_BT = valid_BT & ~_outside(cfg, fixed, sampler_logp, advantage_BT)
    loss_BT = _token_loss(
      cfg, logp, sampler_logp, cfg["adv_tau"] * advantage_BT, keep_BT
    )
    metrics = _metrics(cfg, fixed, sampler_logp, advantage_BT, valid_BT, keep_BT)
    return loss_BT, metrics

  return fn


def native(config: options.Config = None) -> Chain:
  """The native chain of a prime-rl config.

  Its `old_logp` is to be the current policy's log-prob. `ppo` and `cispo` drop nothing:
  they are `tis_jax.losses.ppo` and `sampler_cispo` in bypass mode.

  >>> native({"type": "default"}).stages[0].needs
  ('advantages',)
  >>> [stage.name for stage in native({"type": "icepop"}).stages]
  ['reject']
  """
  cfg = _check(SECTIONS.locate(config, "correction"))
  if cfg["type"] == "ipo":
    return chain(reject_probability_difference(cfg["eps"]))
  if cfg["type"] == "icepop":
    return chain(reject(cfg["ratio_high"], cfg["ratio_low"], level="token"))
  if cfg["type"] == "default":
    stage = reject_probability_difference(
      cfg["dppo_mask_high"], -cfg["dppo_mask_low"], by_advantage=True
    )
    return chain(stage)
  return chain()


def _per_token(advantages, valid_BT: Array) -> Array:
  advantages = jnp.asarray(advantages, jnp.float32)
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  return constant(jnp.broadcast_to(advantages, valid_BT.shape), valid_BT)


def _outside(cfg, logp: Array, sampler_logp: Array, advantage_BT: Array) -> Array:
  """Which tokens the loss takes out of its policy gradient."""
  if cfg["type"] == "icepop":
    log_ratio_BT = logp - sampler_logp
    below_BT = log_ratio_BT < log(cfg["ratio_low"])
    return below_BT | (log_ratio_BT > log(cfg["ratio_high"]))
  if cfg["type"] == "ipo":
    return _distance(logp, sampler_logp) > cfg["eps"]
  if cfg["type"] == "default":
    rise_BT = jnp.exp(logp) - jnp.exp(sampler_logp)
    high_BT, low_BT = rise_BT > cfg["dppo_mask_high"], rise_BT < -cfg["dppo_mask_low"]
    return jnp.where(advantage_BT > 0, high_BT, low_BT)
  return jnp.zeros(logp.shape, bool)


def _distance(logp: Array, sampler_logp: Array) -> Array:
  """|p - q|, without the cancellation of two exponentials that are nearly equal."""
  larger = jnp.maximum(logp, sampler_logp)
  return -jnp.exp(larger) * jnp.expm1(jnp.minimum(logp, sampler_logp) - larger)


def _capped(log_ratio_BT: Array, high: float) -> Array:
  """min(r, high) with the gradient min(r, high) d(log r)."""
  fixed_BT = jax.lax.stop_gradient(log_ratio_BT)
  return jnp.exp(jnp.minimum(fixed_BT, log(high)) + (log_ratio_BT - fixed_BT))


def _token_loss(cfg, logp, sampler_logp, gain_BT, keep_BT):
  log_ratio_BT = logp - sampler_logp
  if cfg["type"] == "cispo":
    # A lower bound of 0 is none.
    fixed_BT = jax.lax.stop_gradient(log_ratio_BT)
    bounded_BT = jnp.clip(fixed_BT, log(cfg["ratio_low"]), log(cfg["ratio_high"]))
    return -jnp.exp(bounded_BT) * gain_BT * logp
  if cfg["type"] == "ppo":
    ratio_BT = _capped(log_ratio_BT, cfg["max_importance_ratio"])
    low, high = cfg["ratio_low"], cfg["ratio_high"]
    # On a bound the gradient passes, as in torch; jnp.clip would halve it.
    inside_BT = (ratio_BT >= low) & (ratio_BT <= high)
    fixed_BT = jnp.clip(jax.lax.stop_gradient(ratio_BT), low, high)
    clipped_BT = jnp.where(inside_BT, ratio_BT, fixed_BT)
    return -jnp.minimum(gain_BT * ratio_BT, gain_BT * clipped_BT)
  # Masked before exp: a ratio that is dropped may overflow.
  safe_BT = jnp.where(keep_BT, log_ratio_BT, 0.0)
  ratio_BT = _capped(safe_BT, cfg.get("max_importance_ratio", float("inf")))
  loss_BT = jnp.where(keep_BT, -gain_BT * ratio_BT, 0.0)
  if cfg.get("kl_tau", 0.0):
    loss_BT += cfg["kl_tau"] * log_ratio_BT**2
  return loss_BT


def _centre(cfg, support_logp, sampler_support_logp, valid_BT):
  """The sum over the support of q w logp, where only logp carries gradient."""
  sampler_BTK = jax.lax.stop_gradient(jnp.asarray(sampler_support_logp, jnp.float32))
  drawn_BTK = valid_BT[..., None] & jnp.isfinite(sampler_BTK)
  sampler_BTK = jnp.where(drawn_BTK, sampler_BTK, 0.0)
  logp_BTK = jnp.where(drawn_BTK, jnp.asarray(support_logp, jnp.float32), 0.0)
  fixed_BTK = jax.lax.stop_gradient(logp_BTK)
  q_BTK, p_BTK = jnp.exp(sampler_BTK), jnp.exp(fixed_BTK)
  weight_BTK = _capped(fixed_BTK - sampler_BTK, cfg["max_importance_ratio"])
  inside_BTK = drawn_BTK & (jnp.abs(p_BTK - q_BTK) <= cfg["eps"])
  return masked_sum(q_BTK * weight_BTK * logp_BTK, inside_BTK, 2)


def _metrics(cfg, logp, sampler_logp, advantage_BT, valid_BT, accepted_BT):
  share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  log_ratio_BT = jnp.where(valid_BT, logp - sampler_logp, 0.0)
  k3_BT = jnp.expm1(jnp.minimum(log_ratio_BT, log(_KL_LIMIT))) - log_ratio_BT
  k3_BT = jnp.minimum(k3_BT, _KL_LIMIT)
  metrics = {"mismatch_kl": masked_mean(k3_BT, valid_BT)}
  if cfg["type"] in ("ppo", "cispo"):
    above_BT = log_ratio_BT > log(cfg["ratio_high"])
    below_BT = log_ratio_BT < log(cfg["ratio_low"])
    if cfg["type"] == "cispo":
      return metrics | {"is_clipped": share(above_BT | below_BT)}
    clipped_BT = (advantage_BT > 0) & above_BT | (advantage_BT < 0) & below_BT
    capped_BT = log_ratio_BT > log(cfg["max_importance_ratio"])
    return metrics | {"is_clipped": share(clipped_BT), "ratio_capped": share(capped_BT)}
  dropped_BT = valid_BT & ~accepted_BT
  metrics |= {
    "masked_mismatch_kl": masked_mean(k3_BT, dropped_BT),
    "unmasked_mismatch_kl": masked_mean(k3_BT, accepted_BT),
    "is_masked": share(dropped_BT),
  }
  if cfg["type"] == "default":
    rising_BT, falling_BT = advantage_BT > 0, advantage_BT < 0
    of_dropped = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), dropped_BT)
    metrics |= {
      "is_masked_high": share(dropped_BT & rising_BT),
      "is_masked_low": share(dropped_BT & falling_BT),
      "masked_advantage_positive": of_dropped(rising_BT),
      "masked_advantage_negative": of_dropped(falling_BT),
    }
  return metrics


def _check(found: dict[str, Any]) -> dict[str, Any]:
  kinds = (*_DEFAULTS, "default")
  given = dict(found)
  kind = given.pop("type", None)
  before = kind == "default" or any(key in given for key in _BEFORE_KEYS)
  if kind is None and "kl_tau" in given and not before:
    raise ValueError(
      f"{_PEER}: give a type beside kl_tau; without one it was 'default' until "
      "2026-08-27 and is 'ipo' since"
    )
  kind = kind or ("default" if before and "ipo_threshold" not in given else "ipo")
  options.choice(_PEER, "type", kind, kinds)
  peer, generation = (
    (_BEFORE, _BEFORE_DEFAULTS) if before else (f"{_PEER} {kind}", _DEFAULTS)
  )
  if before:
    options.choice(peer, "type", kind, tuple(generation))
  cfg = options.read(peer, given, generation[kind])
  for key in ("dppo_mask_low", "dppo_mask_high", "ipo_threshold"):
    if key in cfg:
      cfg[key] = options.number(peer, key, cfg[key], above=0)
  for key in ("eps", "adv_tau", "kl_tau"):
    if key in cfg:
      cfg[key] = options.number(peer, key, cfg[key], at_least=0)
  if "score_centering" in cfg:
    options.flag(peer, "score_centering", cfg["score_centering"])
  if "ratio_low" in cfg:
    _check_ratios(peer, kind, cfg)
  if "max_importance_ratio" in cfg:
    key, least = "max_importance_ratio", cfg.get("ratio_high", 1.0)
    cfg[key] = options.number(peer, key, cfg[key], at_least=least)
  if kind == "ipo" and before:
    cfg["eps"] = cfg.pop("ipo_threshold")
  return {"type": kind} | cfg


def _check_ratios(peer: str, kind: str, cfg: dict[str, Any]) -> None:
  low, high = "ratio_low", "ratio_high"
  if kind == "icepop":
    cfg[low], cfg[high] = options.band(peer, low, cfg[low], high, cfg[high])
    return
  least = {"at_least": 0.0} if kind == "cispo" else {"above": 0.0}
  cfg[low] = options.number(peer, low, cfg[low], **least)
  cfg[high] = options.number(peer, high, cfg[high], at_least=1.0)
  options.order(peer, low, cfg[low], f"1, which {low} may not exceed", 1.0)
