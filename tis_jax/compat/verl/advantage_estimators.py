"""verl: advantages by `adv_estimator`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tis_jax import advantages as native
from tis_jax.compat import options
from tis_jax.compat.arrays import finite_outside
from tis_jax.compat.recursions import backward, whiten_all
from tis_jax.compat.sections.verl import SECTIONS
from tis_jax.numerics.groups import group_sum, max_of_others

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


def advantages(config: options.Config = None) -> Callable:
  r"""The advantage estimator of verl's algorithm options.

  `adv_estimator` is one of gae, grpo, grpo_vectorized, grpo_passk,
  reinforce_plus_plus, reinforce_plus_plus_baseline, rloo, rloo_vectorized, opo, remax,
  gpg, gdpo, optimal_token_baseline, tir_optimal_token_baseline. They are those of
  `tis_jax.advantages`, with verl's choices: a row without siblings keeps its raw score
  (rloo_vectorized: 0); the score is the sum of a row's rewards, those outside the mask
  included; gpg counts the rows of non-zero score where the paper counts the groups that
  can learn; gae leaves numbers outside the mask, remax and the token baselines leave
  returns in its holes; rejected rows stay in every baseline.

  The token baseline is taken at each column over the rows of the group with a token
  there, one of them alone included. Past as many columns as the second longest row has
  tokens, the longest has none. A batch of one row is a group without siblings.

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

  Source: verl, `trainer/ppo/core_algos.py` at 1dda039b9 (2026-08-22).
  """
  cfg = options.read(_PEER, SECTIONS.locate(config, "advantages"), _DEFAULTS)
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
    estimate = functools.partial(
      _ESTIMATORS[name], cfg | {"rows": rewards.shape[0]}, extra=extra
    )
    if group is None or rewards.shape[0] > 1:
      return estimate(rewards, mask_BT, group, extras=extras)
    # The native estimators refuse one row: another, empty, is of another group.
    extras = jax.tree.map(_with_an_empty_row, extras)
    rewards, mask_BT = _with_an_empty_row(rewards), _with_an_empty_row(mask_BT)
    group = jnp.concatenate([jnp.asarray(group), jnp.asarray(group) + 1])
    out = estimate(rewards, mask_BT, group, extras=extras)
    return tuple(x[:1] for x in out)

  return fn


def _with_an_empty_row(x):
  return jnp.pad(x, [(0, 1)] + [(0, 0)] * (jnp.ndim(x) - 1))


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
  return centred_B * (cfg["rows"] / nonzero) / cfg["f_norm"]


def _reinforce_plus_plus(cfg, rewards, mask_BT, group, extra, extras):
  return native.reinforce_plus_plus(rewards, mask_BT, discount=cfg["gamma"])


def _reinforce_plus_plus_baseline(cfg, rewards, mask_BT, group, extra, extras):
  advantage_BT = native.reinforce_plus_plus_baseline(
    rewards.sum(1), group, mask_BT, singleton="raw"
  )
  return advantage_BT, advantage_BT


def _remax(cfg, rewards, mask_BT, group, extra, extras):
  return_BT = _to_go(rewards, mask_BT)
  baseline_B = jnp.asarray(extra("reward_baselines"), jnp.float32)
  return return_BT - jnp.where(mask_BT, baseline_B[:, None], 0.0), return_BT


def _to_go(rewards, mask_BT):
  """The rewards under the mask from each column on, columns outside it included."""
  return jnp.cumsum(jnp.where(mask_BT, rewards, 0.0)[:, ::-1], 1)[:, ::-1]


def _gdpo(cfg, rewards, mask_BT, group, extra, extras):
  keys, weights = cfg["gdpo_reward_keys"], cfg["gdpo_reward_weights"]
  if keys is None:
    score_BK = rewards.sum(1)[:, None]
  else:
    by_key = extra("reward_by_key")
    score_BK = jnp.stack([jnp.asarray(by_key[key]).sum(1) for key in keys], 1)
  advantage_BT = native.gdpo(score_BK, group, mask_BT, weights=weights, singleton="raw")
  return advantage_BT, advantage_BT


def _token_baseline(pack):
  """`pack` moves each row's tokens to its left before the columns are compared."""

  def build(cfg, rewards, mask_BT, group, extra, extras):
    constant = lambda x: jnp.where(mask_BT, jnp.asarray(x, jnp.float32), 0.0)
    logp, squared = constant(extra("old_logp")), constant(extra("sum_pi_squared"))
    energy_BT = jnp.where(mask_BT, 1 - 2 * jnp.exp(logp) + squared, 0.0)
    if extras.get("rollout_is_weights") is not None:
      energy_BT = energy_BT * constant(extras["rollout_is_weights"]) ** 2
    return_BT = _to_go(rewards, mask_BT)
    path_BT = jnp.where(mask_BT, jnp.cumsum(energy_BT, 1), 0.0)
    order_BT = jnp.argsort(~mask_BT, axis=1, stable=True)
    take = lambda x, index: jnp.take_along_axis(x, index, 1) if pack else x
    gain_BT, path_BT = take(return_BT * path_BT, order_BT), take(path_BT, order_BT)
    baseline_BT = group_sum(gain_BT, group) / (group_sum(path_BT, group) + 1e-8)
    # verl counts tokens and takes the number for a column.
    tokens_B = mask_BT.sum(1, dtype=jnp.float32)
    second_B = jnp.maximum(max_of_others(tokens_B, group), 0.0)
    columns = jnp.arange(mask_BT.shape[1])[None, :]
    tail_BT = (tokens_B > second_B)[:, None] & (columns >= second_B[:, None])
    baseline_BT = jnp.where(tail_BT, 0.0, baseline_BT)
    baseline_BT = take(baseline_BT, jnp.argsort(order_BT, axis=1))
    advantage_BT = jnp.where(mask_BT, return_BT - baseline_BT, 0.0)
    return jax.lax.stop_gradient((advantage_BT, return_BT))

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
  "optimal_token_baseline": _token_baseline(pack=False),
  "tir_optimal_token_baseline": _token_baseline(pack=True),
}
