"""prime-rl: the trust region on probabilities of its default and IPO losses."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax.compat import options
from tis_jax.compat.arrays import Correct, constant, masked_mean, prepare
from tis_jax.corrections import Chain, chain, reject_probability_difference

_PEER = "prime-rl"
_DEFAULTS = {
  "type": "default",
  "dppo_mask_low": 0.2,
  "dppo_mask_high": 0.2,
  "ipo_threshold": 0.1,
  "adv_tau": 1.0,
  "kl_tau": 1e-3,
}


def correction(config: Mapping[str, Any] | None = None) -> Correct:
  r"""The mask of prime-rl's loss, between the current policy and the sampler.

  With p the probability each gives the token: `default` drops a token of A > 0 whose
  p rose by more than `dppo_mask_high`, and one of A <= 0 whose p fell by more than
  `dppo_mask_low`; `ipo` drops every token that moved by more than `ipo_threshold`.
  prime-rl divides by the tokens of the incoming mask.

  Args:
    config: the `trainer.loss` section: `type` (default, ipo), `dppo_mask_low`,
      `dppo_mask_high`, `ipo_threshold`; `adv_tau` and `kl_tau` belong to `policy_loss`.

  Returns:
    `fn(logp, sampler_logp, mask, *, advantages=None) -> (None, mask, metrics)`, with
    the current policy's log-probs; `default` needs `advantages`, `[B]` or `[B, T]`.
    There is no weight: the loss holds the ratio.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> logp, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.5, 0.8]]))
  >>> fn = correction()
  >>> fn(logp, sampler, jnp.ones((1, 2), bool), advantages=jnp.array([1.0]))[1]
  Array([[False,  True]], dtype=bool)

  Source: prime-rl, `trainer/rl/loss.py` (2026-08).
  """
  cfg = _check(config)
  gate = chain(_stage(cfg), metrics="none")

  def correct(logp, sampler_logp, mask, *, advantages=None):
    dtype = jnp.asarray(mask).dtype
    logp, sampler_logp, valid_BT = prepare(logp, sampler_logp, mask)
    accepted_BT = gate(logp, sampler_logp, valid_BT, advantages=advantages).mask
    log_ratio_BT = jnp.where(valid_BT, logp - sampler_logp, 0.0)
    k3_BT = jnp.expm1(log_ratio_BT) - log_ratio_BT
    dropped_BT = valid_BT & ~accepted_BT
    if advantages is None:
      high_BT, low_BT = log_ratio_BT > 0, log_ratio_BT < 0
    else:
      high_BT, low_BT = (
        jnp.broadcast_to(x, valid_BT.shape) for x in _signs(advantages)
      )
    share = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
    metrics = {
      "mismatch_kl": masked_mean(k3_BT, valid_BT),
      "masked_mismatch_kl": masked_mean(k3_BT, dropped_BT),
      "unmasked_mismatch_kl": masked_mean(k3_BT, accepted_BT),
      "is_masked": share(dropped_BT),
      "is_masked_high": share(dropped_BT & high_BT),
      "is_masked_low": share(dropped_BT & low_BT),
    }
    return None, accepted_BT.astype(dtype), metrics

  return correct


def policy_loss(config: Mapping[str, Any] | None = None) -> Callable:
  r"""prime-rl's loss: `mean(-keep adv_tau A r + kl_tau (log r)^2)`, r on the sampler.

  The second term, of Kimi-K2.5, is not masked by the trust region.

  Args:
    config: as for `correction`, with `adv_tau` (1) and `kl_tau` (1e-3).

  Returns:
    `fn(logp, sampler_logp, advantages, mask) -> (loss, metrics)`, the mean over the
    tokens of the incoming mask.

  Raises:
    ValueError: an unknown key or an impossible value.

  >>> fn = policy_loss({"kl_tau": 0.0})
  >>> logp, sampler = jnp.log(jnp.array([[0.9, 0.9]])), jnp.log(jnp.array([[0.5, 0.8]]))
  >>> fn(logp, sampler, jnp.ones((1, 2)), jnp.ones((1, 2)))[0]  # of 0 and -0.9 / 0.8
  Array(-0.5625, dtype=float32)

  Source: prime-rl, `trainer/rl/loss.py` (2026-08); arXiv 2602.04879, 2602.02276.
  """
  cfg = _check(config)
  correct = correction(config)

  def fn(logp, sampler_logp, advantages, mask):
    _, accepted, metrics = correct(logp, sampler_logp, mask, advantages=advantages)
    valid_BT = jnp.asarray(mask) != 0
    logp = jnp.where(valid_BT, jnp.asarray(logp, jnp.float32), 0.0)
    log_ratio_BT = logp - constant(sampler_logp, valid_BT)
    if jnp.ndim(advantages) == 1:
      advantages = advantages[:, None]
    gain_BT = cfg["adv_tau"] * advantages * jnp.exp(log_ratio_BT)
    loss_BT = jnp.where(accepted != 0, -gain_BT, 0.0) + cfg["kl_tau"] * log_ratio_BT**2
    return masked_mean(loss_BT, valid_BT), metrics

  return fn


def native(config: Mapping[str, Any] | None = None) -> Chain:
  """The native chain of a prime-rl config.

  Its `old_logp` is to be the current policy's log-prob.

  >>> native().stages[0].needs
  ('advantages',)
  """
  return chain(_stage(_check(config)))


def _signs(advantages):
  advantages = advantages[:, None] if jnp.ndim(advantages) == 1 else advantages
  return advantages > 0, advantages < 0


def _stage(cfg):
  if cfg["type"] == "ipo":
    return reject_probability_difference(cfg["ipo_threshold"])
  return reject_probability_difference(
    cfg["dppo_mask_high"], -cfg["dppo_mask_low"], by_advantage=True
  )


def _check(config) -> dict[str, Any]:
  cfg = options.read(_PEER, config, _DEFAULTS)
  options.choice(_PEER, "type", cfg["type"], ("default", "ipo"))
  for key in ("dppo_mask_low", "dppo_mask_high", "ipo_threshold"):
    cfg[key] = options.number(_PEER, key, cfg[key], above=0)
  for key in ("adv_tau", "kl_tau"):
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=0)
  return cfg
