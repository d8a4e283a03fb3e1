"""`config.algorithm`: which stages, loss and estimator, and all that they take.

Groups of stages, losses and estimators are named after functions, and hold their
arguments. Those that are not named by `correction.stages`, `loss.name` or
`advantage.name` are not used; they are there to be named, and for
`--config.algorithm.loss.gspo.clip_high=...` to find. Where `peer` names one of
`tis_jax.compat`, what `peer_options` decide is not taken from here at all.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from tis_jax.advantages import ARGUMENTS as ADVANTAGE_ARGUMENTS
from tis_jax.advantages import ESTIMATORS
from tis_jax.corrections import STAGES, from_config
from tis_jax.learner import Algorithm
from tis_jax.losses import ARGUMENTS as LOSS_ARGUMENTS
from tis_jax.losses import POLICY_LOSSES
from tis_jax.numerics.arguments import bind, check_name
from tis_jax.runner import peers
from tis_jax.runner.config import config_of, group_of, refusing, settings_of


def algorithm_config() -> ConfigDict:
  """The settings of `config.algorithm`: token TIS at 2.0 under GRPO with DAPO's clip.

  A stage that a chain holds twice takes a suffix: `stages = ("reject", "reject_2")`
  with `reject_2 = ConfigDict(...)` set in the config file. A value of None is the
  function's own None, where it has a meaning, or must be set.

  >>> config = algorithm_config()
  >>> config.correction.truncate.to_dict(), config.loss.name
  ({'high': 2.0, 'level': 'token'}, 'ppo')
  """
  # The sampler's temperature is the learner's, the store's bound too: one setting each.
  config = config_of(Algorithm, without=("temperature", "max_staleness"))
  config.correction = ConfigDict({name: group_of(STAGES[name]) for name in STAGES})
  # Names of stages, in the order in which they are applied; none only watches.
  config.correction.stages = ("truncate",)
  # none, core, or full: percentiles, and log-ratios by position and staleness.
  config.correction.metrics = "core"
  config.loss = ConfigDict(
    {x: group_of(POLICY_LOSSES[x], without=LOSS_ARGUMENTS) for x in POLICY_LOSSES}
  )
  config.loss.name = "ppo"
  config.advantage = ConfigDict(
    {x: group_of(ESTIMATORS[x], without=ADVANTAGE_ARGUMENTS) for x in ESTIMATORS}
  )
  config.advantage.name = "grpo"
  # A peer by its name in tis_jax.compat, and its own configuration, whole or a section.
  config.peer = ""
  config.peer_options = ConfigDict()
  return config


def algorithm_of(
  config: Mapping,
  temperature: float = 1.0,
  response_length: int | None = None,
  max_staleness: int | None = None,
) -> Algorithm:
  """The `Algorithm` of `config.algorithm`.

  Args:
    config: a ConfigDict, or a mapping, with the keys of `algorithm_config`; those left
      out take its values.
    temperature: that the sampler draws at.
    response_length: tokens that a response may have.
    max_staleness: the bound at which a token is late; None for none.

  Raises:
    ConfigError: an unknown key or name, with the nearest that exists; a required
      setting that is None; a combination that `Algorithm` refuses.

  >>> config = algorithm_config()
  >>> config.loss.ppo.clip_hihg = 0.3
  >>> algorithm_of(config)
  Traceback (most recent call last):
  ...
  tis_jax.runner.config.ConfigError: algorithm.loss.ppo has no setting 'clip_hihg'; ...
  """
  given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
  default = algorithm_config().to_dict()
  with refusing():
    for name in given:
      check_name("algorithm", name, default)
    peer, options = (given.pop(x, default[x]) for x in ("peer", "peer_options"))
    groups = {
      name: default[name] | dict(given.pop(name, {}))
      for name in ("correction", "loss", "advantage")
    }
    functions = {
      "correct": from_config(groups["correction"], "algorithm.correction"),
      "loss": _named("algorithm.loss", POLICY_LOSSES, groups["loss"], LOSS_ARGUMENTS),
      "advantage": _named(
        "algorithm.advantage", ESTIMATORS, groups["advantage"], ADVANTAGE_ARGUMENTS
      ),
    }
    decided = peers.decided(peer, options, response_length)
  functions |= {name: decided.pop(name) for name in functions if name in decided}
  for name, value in decided.items():
    nested = isinstance(value, Mapping)
    given[name] = {**given.get(name, {}), **value} if nested else value
  fixed = {"temperature": temperature, "max_staleness": max_staleness}
  return settings_of(Algorithm, given, "algorithm", **functions, **fixed)


def _named(
  path: str, functions: Mapping[str, Callable], config: Mapping, arguments: tuple
) -> Callable:
  """The function that `config["name"]` names, with its group's settings bound."""
  for name in config:
    if name != "name":
      check_name(path, name, [*functions, "name"])
  name = config["name"]
  check_name(f"{path}.name", name, functions)
  return bind(
    f"{path}.{name}", functions[name], config.get(name, {}), without=arguments
  )
