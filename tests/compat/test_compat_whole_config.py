"""A peer's configuration pasted whole: each function takes what is its own."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import compat
from tis_jax.compat import options, skyrl, verl

_VERL = {
  "defaults": ["_self_"],
  "algorithm": {
    "_target_": "verl.trainer.config.AlgoConfig",
    "gamma": 0.9,
    "lam": 0.8,
    "adv_estimator": "rloo",
    "use_kl_in_reward": False,
    "kl_penalty": "kl",
    "rollout_correction": {
      "rollout_is": "token",
      "rollout_is_threshold": 1.5,
      "rollout_rs": None,
      "bypass_mode": False,
    },
  },
  "actor_rollout_ref": {
    "actor": {
      "clip_ratio_high": 0.28,
      "loss_agg_mode": "seq-mean-token-sum",
      "policy_loss": {"loss_mode": "vanilla"},
      "use_kl_loss": True,
      "kl_loss_type": "low_var_kl",
    },
  },
  "critic": {
    "cliprange_value": 0.25,
    "loss_agg_mode": ("${oc.select:actor_rollout_ref.actor.loss_agg_mode,token-mean}"),
  },
}
_SKYRL = {
  "trainer": {
    "algorithm": {
      "advantage_estimator": "rloo",
      "policy_loss_type": "dual_clip",
      "eps_clip_high": 0.28,
      "loss_reduction": "sequence_mean",
      "off_policy_correction": {
        "tis_ratio_type": "token",
        "token_tis_ratio_clip_high": 1.5,
      },
    },
  },
}


def _arrays(rows=3, tokens=5, number=2):
  rng = np.random.default_rng(0)
  mask = np.arange(tokens) < np.array([[5], [3], [4]])[:rows]
  logs = [-rng.exponential(1.0, (rows, tokens)) for _ in range(number)]
  return *map(jnp.float32, logs), jnp.asarray(mask)


def _forms(config):
  """The same configuration as YAML, dotted, as a command line, and as its words."""
  leaves = {
    ".".join(path): value
    for path, value in options.leaves(options.parse("a peer", config))
    if path[0] != "defaults" and not path[-1].startswith("_")
  }
  words = [f"{key}={_written(value)}" for key, value in leaves.items()]
  script = " \\\n  ".join(["python3 -m verl.trainer.main_ppo --config-name=x", *words])
  return [config, leaves, script + ' "$@"', [f"+{word}" for word in words]]


def _written(value):
  return f"'{value}'" if "$" in str(value) else "null" if value is None else value


def _cut(config, *sections):
  for section in sections:
    config = config[section]
  return config


def _calls(module, name, config):
  rewards = jnp.array([[1.0] * 5, [0.0] * 5, [3.0] * 5])
  logp, old, mask = _arrays()
  built = getattr(module, name)(config)
  if name == "correction":
    return built(logp, old, mask)
  if name == "policy_loss":
    more = {"sampler_logp": old} if module is skyrl else {}
    return built(logp, old + 0.3, rewards - 1, mask, **more)
  if name == "advantages":
    return built(rewards, mask, jnp.zeros(3, int), values=logp)
  if name == "value_loss":
    return built(logp, old, rewards, mask)
  if name == "kl_penalty":
    return built(logp, old)
  return built(rewards, mask)


_PASTED = [
  (verl, _VERL, "correction", ("algorithm", "rollout_correction"), {}),
  (verl, _VERL, "advantages", ("algorithm",), {}),
  (verl, _VERL, "policy_loss", ("actor_rollout_ref", "actor"), {}),
  (verl, _VERL, "agg_loss", ("actor_rollout_ref", "actor"), {}),
  (verl, _VERL, "kl_penalty", ("actor_rollout_ref", "actor"), {}),
  (
    verl,
    _VERL,
    "value_loss",
    ("critic",),
    {"loss_agg_mode": "seq-mean-token-sum"},
  ),
  (
    skyrl,
    _SKYRL,
    "correction",
    ("trainer", "algorithm", "off_policy_correction"),
    {},
  ),
  *(
    (skyrl, _SKYRL, name, ("trainer", "algorithm"), {})
    for name in ("policy_loss", "advantages", "reduction")
  ),
]


@pytest.mark.parametrize(("module", "config", "name", "sections", "resolved"), _PASTED)
def test_a_config_pasted_whole_is_its_section(module, config, name, sections, resolved):
  alone = _calls(module, name, _cut(config, *sections) | resolved)
  default = _calls(module, name, {})
  same = lambda a, b: all(
    np.array_equal(x, y) for x, y in zip(_flat(a), _flat(b), strict=True)
  )
  assert len(_flat(default)) != len(_flat(alone)) or not same(default, alone)
  for whole in _forms(config):
    assert same(_calls(module, name, whole), alone)


def _flat(outcome):
  parts = outcome if isinstance(outcome, tuple) else (outcome,)
  out = []
  for part in parts:
    out += list(part.values()) if isinstance(part, dict) else [part]
  return [x for x in out if x is not None]


def test_a_2025_10_config_is_known_by_where_its_keys_stand():
  whole = {"algorithm": {"rollout_is_threshold": 1.5, "rollout_is": True, "gamma": 1.0}}
  alone = {"rollout_is_threshold": 1.5, "rollout_is": True, "rollout_is_level": "token"}
  arrays = _arrays()
  weight, _, metrics = verl.correction(whole)(*arrays)
  np.testing.assert_array_equal(weight, verl.correction(alone)(*arrays)[0])
  assert "mismatch/rollout_is_mean" in metrics
  assert verl.native(whole) == verl.native(alone)


@pytest.mark.parametrize(
  ("build", "config", "message"),
  [
    (
      verl.correction,
      {"algorithm": {"rollout_correction": {"rolout_is": "token"}}},
      "verl has no option 'rolout_is' in algorithm.rollout_correction; .*'rollout_is'",
    ),
    (
      verl.correction,
      "actor_rollout_ref.actor.clip_ratio_hi=0.3",
      "'clip_ratio_hi' in actor_rollout_ref.actor; .*'clip_ratio_high'",
    ),
    (verl.advantages, {"algoritm": {"gamma": 1.0}}, "'algoritm'; .*'algorithm'"),
    (verl.policy_loss, {"algorithm": {"gama": 1.0}}, "'gama' in algorithm; .*'gamma'"),
    (
      skyrl.correction,
      {"trainer": {"algoritm": {"use_tis": True}}},
      "SkyRL has no option 'algoritm' in trainer; .*'algorithm'",
    ),
    (
      skyrl.advantages,
      "trainer.algorithm.off_policy_correction.geo_mask_lo=0.9",
      "'geo_mask_lo' in trainer.algorithm.off_policy_correction; .*'geo_mask_low'",
    ),
  ],
)
def test_a_key_that_the_peer_lacks_is_refused_wherever_it_stands(
  build, config, message
):
  with pytest.raises(ValueError, match=message):
    build(config)


def test_what_another_function_reads_is_passed_over_and_listed():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    verl.correction(_VERL)
    skyrl.correction(_SKYRL)
  used = verl.used(_VERL)
  assert used["algorithm.gamma"] == ("advantages",)
  assert used["algorithm.rollout_correction.rollout_is"] == ("correction",)
  assert used["actor_rollout_ref.actor.loss_agg_mode"] == ("policy_loss", "agg_loss")
  assert used["critic.cliprange_value"] == ("value_loss",)
  used = skyrl.used(_SKYRL)
  assert used["trainer.algorithm.loss_reduction"] == ("policy_loss", "reduction")
  correction = "trainer.algorithm.off_policy_correction.tis_ratio_type"
  assert used[correction] == ("correction", "policy_loss")


@pytest.mark.parametrize(
  ("build", "used", "config", "unread"),
  [
    (
      verl.correction,
      verl.used,
      "trainer.total_epochs=3 algorithm.gamma=1.0",
      "trainer",
    ),
    (
      verl.advantages,
      verl.used,
      {"algorithm": {"gamma": 1.0, "filter_groups": {"enable": False}}},
      "algorithm.filter_groups",
    ),
    (
      skyrl.policy_loss,
      skyrl.used,
      {"trainer": {"epochs": 3, "algorithm": {"eps_clip_low": 0.1}}},
      "trainer.epochs",
    ),
  ],
)
def test_what_nothing_here_reads_is_said(build, used, config, unread):
  with pytest.warns(UserWarning, match=f"nothing here reads {unread}$"):
    build(config)
  assert used(config)[unread] == ()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("algorithm.rollout_correction.rollout_is_threshold=0.5_2", "0.52 to Hydra"),
    ({"algorithm": {"gamma": 1.0}, "gamma": 0.9}, None),
    (
      "algorithm.rollout_correction.rollout_is=${level}",
      "rollout_is is '.*level",
    ),
    ("rollout_is: token", "no 'key=value' override; load YAML"),
    (
      {"rollout_is": "token", "rollout_correction": {"rollout_is": "sequence"}},
      "rollout_is is given twice",
    ),
  ],
)
def test_what_cannot_be_read_is_refused(config, message):
  if message is None:
    with pytest.raises(ValueError, match="gamma is given twice"):
      verl.advantages(config)
    return
  with pytest.raises(ValueError, match=message):
    verl.correction(config)


def test_a_range_on_a_command_line_is_a_range():
  whole = "algorithm.rollout_correction.rollout_is=token "
  whole += "algorithm.rollout_correction.rollout_is_threshold=0.5_5.0"
  section = {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}
  assert verl.native(whole) == verl.native(section)


@pytest.mark.parametrize("name", compat.PEERS)
def test_every_reader_is_a_function_here(name):
  module = getattr(compat, name)
  sections = compat.sections_of(name)
  assert module.used == sections.used
  for reader in set(sections.readers) - {"correction of 2025-10"}:
    assert callable(getattr(module, reader))
