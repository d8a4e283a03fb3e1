"""SkyRL: advantages by `advantage_estimator`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tis_jax import advantages as native
from tis_jax.compat import options
from tis_jax.compat.arrays import finite_outside, masked_mean
from tis_jax.compat.recursions import backward, whiten_all
from tis_jax.compat.sections.skyrl import SECTIONS

_PEER = "SkyRL"
_NAMES = ("grpo", "rloo", "maxrl", "reinforce++", "gae")
_DEFAULTS = {
  "advantage_estimator": "grpo",
  "gamma": 1.0,
  "lambd": 1.0,
  "grpo_norm_by_std": True,
  "advantage_batch_normalize": False,
}


def advantages(config: options.Config = None) -> Callable:
  r"""The advantage estimator of SkyRL's algorithm options.

  `advantage_estimator` is one of grpo, rloo, maxrl, reinforce++, gae: those of
  `tis_jax.advantages` with SkyRL's choices. A row without siblings keeps its raw score
  (rloo: 0). In reinforce++ a hole in the mask erases all later reward for the tokens
  before it. gae and `advantage_batch_normalize` leave values outside the mask.

  Args:
    config: `advantage_estimator`, `gamma`, `lambd`, `grpo_norm_by_std`,
      `advantage_batch_normalize`.

  Returns:
    `fn(rewards, mask, group, **extras) -> (advantages, returns)`, all `[B, T]` but
    `group`, `[B]` integers. gae needs `values`; other extras are ignored.

  Raises:
    ValueError: an unknown key, an impossible value, or, at the call, an extra missing.

  >>> fn = advantages({"advantage_estimator": "maxrl"})
  >>> fn(jnp.array([[1.0], [0.0]]), jnp.ones((2, 1)), jnp.array([7, 7]))[0].round(3)
  Array([[ 1.],
         [-1.]], dtype=float32)

  Source: SkyRL, `backends/skyrl_train/utils/ppo_utils.py` (2026-08).
  """
  cfg = options.read(_PEER, SECTIONS.locate(config, "advantages"), _DEFAULTS)
  name = options.choice(
    _PEER, "advantage_estimator", cfg["advantage_estimator"], _NAMES
  )
  gamma = options.number(_PEER, "gamma", cfg["gamma"], at_least=0)
  trace = options.number(_PEER, "lambd", cfg["lambd"], at_least=0)
  by_std = options.flag(_PEER, "grpo_norm_by_std", cfg["grpo_norm_by_std"])
  batch_normalize = options.flag(
    _PEER, "advantage_batch_normalize", cfg["advantage_batch_normalize"]
  )

  def estimate(rewards, mask_BT, group, extras):
    if name == "gae":
      if extras.get("values") is None:
        raise ValueError(f"{_PEER}: advantage_estimator 'gae' needs values=")
      values = finite_outside(extras["values"], mask_BT)
      return _gae(rewards, values, mask_BT, gamma, trace)
    if name == "reinforce++":
      return _reinforce(rewards, mask_BT, gamma)
    if group is None:
      raise ValueError(f"{_PEER}: advantage_estimator {name!r} needs group")
    score_B, rows = rewards.sum(1), len(rewards)
    if rows == 1:
      # The native baselines refuse a batch of one row; a stranger changes nothing.
      score_B, group = jnp.pad(score_B, (0, 1)), jnp.arange(2)
    if name == "grpo":
      advantage_B = native.grpo(score_B, group, normalize=by_std, singleton="raw")
    elif name == "rloo":
      advantage_B = native.rloo(score_B, group)
    else:
      advantage_B = native.maxrl(score_B, group, singleton="raw")
    advantage_BT = jnp.where(mask_BT, advantage_B[:rows, None], 0.0)
    return advantage_BT, advantage_BT

  def fn(rewards, mask, group=None, **extras):
    mask_BT = jnp.asarray(mask) != 0
    rewards = finite_outside(rewards, mask_BT)
    advantage_BT, return_BT = estimate(rewards, mask_BT, group, extras)
    if batch_normalize:
      advantage_BT = _batch_normalize(advantage_BT, mask_BT)
    return advantage_BT, return_BT

  return fn


def _gae(rewards, values, mask_BT, gamma, trace):
  def step(carry, reward, value):
    next_value, next_advantage = carry
    advantage = reward + gamma * next_value - value + gamma * trace * next_advantage
    return (value, advantage), advantage

  zeros_B = jnp.zeros_like(rewards[:, 0])
  advantage_BT = backward(step, (zeros_B, zeros_B), rewards, values)
  return whiten_all(advantage_BT, mask_BT), advantage_BT + values


def _reinforce(rewards, mask_BT, gamma):
  def step(following, reward, valid):
    return_now = reward + gamma * following
    return jnp.where(valid, return_now, 0.0), return_now

  return_BT = backward(step, jnp.zeros_like(rewards[:, 0]), rewards, mask_BT)
  return native.whiten(return_BT, mask_BT), return_BT


def _batch_normalize(advantage_BT, mask_BT):
  """Centred by the mean over every slot, scaled by the spread over the mask."""
  centred_BT = advantage_BT - advantage_BT.mean()
  variance = jnp.maximum(masked_mean(centred_BT**2, mask_BT), 1e-8)
  return centred_BT * jax.lax.rsqrt(variance)
