"""verl: advantages by `adv_estimator`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from tis_jax import advantages as native
from tis_jax.compat import options
from tis_jax.compat.arrays import finite_outside
from tis_jax.compat.recursions import backward, whiten_all

_PEER = "verl"
_DEFAULTS = {
  "adv_estimator": "gae",
  "gamma": 1.0,
  "lam": 1.0,
  "norm_adv_by_std_in_grpo": True,
  "f_norm": 1.0,
  "gdpo_reward_keys": None,
  "gdpo_reward_weights": None,
}


def advantages(config: Mapping[str, Any] | None = None) -> Callable:
  r"""The advantage estimator of verl's algorithm options.

  `adv_estimator` is one of gae, grpo, grpo_vectorized, grpo_passk,
  reinforce_plus_plus, reinforce_plus_plus_baseline, rloo, rloo_vectorized, opo, remax,
  gpg, gdpo, optimal_token_baseline, tir_optimal_token_baseline. They are those of
  `tis_jax.advantages`, with verl's choices: a row without siblings keeps its raw score
  (rloo_vectorized: 0); the score is the sum of a row's rewards, those outside the mask
  included; gpg counts the rows of non-zero score where the paper counts the groups that
  can learn; gae leaves numbers outside the mask; rejected rows stay in every baseline.

  Args:
    config: `adv_estimator`, `gamma`, `lam`, `norm_adv_by_std_in_grpo`, `f_norm`,
      `gdpo_reward_keys`, `gdpo_reward_weights`.

  Returns:
    `fn(rewards, mask, group, **extras) -> (advantages, returns)`, all `[B, T]` but
    `group`, `[B]` integers. Extras that an estimator does not need are ignored; it
    needs `values` (gae), `reward_baselines` (`[B]`, remax), `old_logp` and
    `sum_pi_squared` (the token baselines, which also take `rollout_is_weights`), and
    `reward_by_key` (gdpo with keys: a mapping from key to `[B, T]` rewards).

  Raises:
    ValueError: an unknown key, an impossible value, or, at the call, an extra missing.

  >>> fn = advantages({"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False})
  >>> fn(jnp.array([[1.0], [0.0]]), jnp.ones((2, 1)), jnp.array([7, 7]))[0].tolist()
  [[0.5], [-0.5]]

  Source: verl, `trainer/ppo/core_algos.py` (2026-08).
  """
  cfg = options.read(_PEER, config, _DEFAULTS)
  name = options.choice(
    _PEER, "adv_estimator", cfg["adv_estimator"], tuple(_ESTIMATORS)
  )
  for key in ("gamma", "lam"):
    cfg[key] = options.number(_PEER, key, cfg[key], at_least=0)
  cfg["f_norm"] = options.number(_PEER, "f_norm", cfg["f_norm"], above=0)
  options.flag(_PEER, "norm_adv_by_std_in_grpo", cfg["norm_adv_by_std_in_grpo"])

  def fn(rewards, mask, group=None, **extras):
    mask_BT = jnp.asarray(mask) != 0
    rewards = finite_outside(rewards, mask_BT)

    def extra(key):
      if extras.get(key) is None:
        raise ValueError(f"{_PEER}: adv_estimator {name!r} needs {key}=")
      return extras[key]

    if group is None and name not in _WITHOUT_GROUP:
      raise ValueError(f"{_PEER}: adv_estimator {name!r} needs group")
    return _ESTIMATORS[name](cfg, rewards, mask_BT, group, extra, extras)

  return fn


def _outcome(estimate):
  """An estimator of one number a row: it stands on every token, and is the return."""

  def build(cfg, rewards, mask_BT, group, extra, extras):
    advantage_B = estimate(cfg, rewards.sum(1), mask_BT, group)
    advantage_BT = jnp.where(mask_BT, advantage_B[:, None], 0.0)
    return advantage_BT, advantage_BT

  return build


def _gae(cfg, rewards, mask_BT, group, extra, extras):
  """verl leaves the next token's advantage and return on what is not in the mask."""
  gamma, trace = cfg["gamma"], cfg["lam"]
  values = finite_outside(extra("values"), mask_BT)

  def step(carry, reward, value, valid):
    next_value, next_advantage = carry
    delta = reward + gamma * next_value - value
    advantage = jnp.where(valid, delta + gamma * trace * next_advantage, next_advantage)
    return (jnp.where(valid, value, next_value), advantage), advantage

  zeros_B = jnp.zeros_like(rewards[:, 0])
  advantage_BT = backward(step, (zeros_B, zeros_B), rewards, values, mask_BT)
  return whiten_all(advantage_BT, mask_BT), advantage_BT + values


def _grpo(cfg, score_B, mask_BT, group):
  normalize = cfg["norm_adv_by_std_in_grpo"]
  return native.grpo(score_B, group, normalize=normalize, singleton="raw")


def _grpo_passk(cfg, score_B, mask_BT, group):
  return native.best_of_group(score_B, group, normalize=cfg["norm_adv_by_std_in_grpo"])


def _opo(cfg, score_B, mask_BT, group):
  return native.opo(score_B, mask_BT.sum(1), group, singleton="raw")


def _gpg(cfg, score_B, mask_BT, group):
  nonzero = jnp.maximum((score_B != 0).sum(dtype=jnp.float32), 1.0)
  centred_B = native.dr_grpo(score_B, group, singleton="raw")
  return centred_B * (score_B.size / nonzero) / cfg["f_norm"]


def _reinforce_plus_plus(cfg, rewards, mask_BT, group, extra, extras):
  return native.reinforce_plus_plus(rewards, mask_BT, discount=cfg["gamma"])


def _reinforce_plus_plus_baseline(cfg, rewards, mask_BT, group, extra, extras):
  advantage_BT = native.reinforce_plus_plus_baseline(
    rewards.sum(1), group, mask_BT, singleton="raw"
  )
  return advantage_BT, advantage_BT


def _remax(cfg, rewards, mask_BT, group, extra, extras):
  return_BT = native.rewards_to_go(rewards, mask_BT)
  baseline_B = jnp.asarray(extra("reward_baselines"), jnp.float32)
  return jnp.where(mask_BT, return_BT - baseline_B[:, None], 0.0), return_BT


def _gdpo(cfg, rewards, mask_BT, group, extra, extras):
  keys, weights = cfg["gdpo_reward_keys"], cfg["gdpo_reward_weights"]
  if keys is None:
    score_BK = rewards.sum(1)[:, None]
  else:
    by_key = extra("reward_by_key")
    score_BK = jnp.stack([jnp.asarray(by_key[key]).sum(1) for key in keys], 1)
  advantage_BT = native.gdpo(score_BK, group, mask_BT, weights=weights, singleton="raw")
  return advantage_BT, advantage_BT


def _token_baseline(align):
  def build(cfg, rewards, mask_BT, group, extra, extras):
    return native.optimal_token_baseline(
      rewards,
      group,
      mask_BT,
      extra("old_logp"),
      extra("sum_pi_squared"),
      weight=extras.get("rollout_is_weights"),
      align=align,
    )

  return build


_WITHOUT_GROUP = ("gae", "reinforce_plus_plus", "remax")
_ESTIMATORS = {
  "gae": _gae,
  "grpo": _outcome(_grpo),
  "grpo_vectorized": _outcome(_grpo),
  "grpo_passk": _outcome(_grpo_passk),
  "reinforce_plus_plus": _reinforce_plus_plus,
  "reinforce_plus_plus_baseline": _reinforce_plus_plus_baseline,
  "rloo": _outcome(lambda cfg, s, m, g: native.rloo(s, g, singleton="raw")),
  "rloo_vectorized": _outcome(lambda cfg, s, m, g: native.rloo(s, g)),
  "opo": _outcome(_opo),
  "remax": _remax,
  "gpg": _outcome(_gpg),
  "gdpo": _gdpo,
  "optimal_token_baseline": _token_baseline("column"),
  "tir_optimal_token_baseline": _token_baseline("ordinal"),
}
