"""An `Algorithm` from an `ml_collections` config, and the config's defaults.

Options are not listed here: a group's keys are its function's own arguments, and its
values their defaults, so neither can drift from the code.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tis_jax import advantages, corrections, losses
from tis_jax.advantages import ESTIMATORS
from tis_jax.corrections import STAGES
from tis_jax.learner.algorithm import Algorithm
from tis_jax.losses import POLICY_LOSSES

# Arguments that the update fills in, and that are no settings.
_ARRAYS = {*advantages.ARGUMENTS, *losses.ARGUMENTS}


def default_config() -> ConfigDict:
  """The settings of `config.algorithm`: token TIS at 2.0 under GRPO with DAPO's clip.

  Groups of stages, losses and advantages that are not named are not used; they are
  there to be named, and for `--config.algorithm.loss.gspo.clip_high=...` to find. A
  stage that a chain holds twice takes a suffix: `stages = ("reject", "reject_2")` with
  `reject_2 = ConfigDict(...)` set in the config file. A value of None is the function's
  own None, where it has a meaning, or must be set.

  >>> config = default_config()
  >>> config.correction.truncate.to_dict(), config.loss.name
  ({'high': 2.0, 'level': 'token'}, 'ppo')
  """
  config = ConfigDict()
  # recompute (decoupled), current (the same for one update a batch, without the extra
  # forward pass) or sampler (bypass).
  config.old_logp = "recompute"
  # Of the policy that is trained. The sampler must have used it.
  config.temperature = 1.0
  # Passes over a batch, optimizer updates a pass, and forward passes an update.
  config.epochs = 1
  config.mini_batches = 1
  config.micro_batches = 1
  # Deal the rows anew to the mini-batches of each epoch.
  config.shuffle = False
  config.entropy_coefficient = 0.0

  config.correction = _groups(STAGES)
  # Names of stages, in the order in which they are applied; none only watches.
  config.correction.stages = ("truncate",)
  # none, core, or full: percentiles, and log-ratios by position and staleness.
  config.correction.metrics = "core"

  config.loss = _groups(POLICY_LOSSES)
  config.loss.name = "ppo"

  config.advantage = _groups(ESTIMATORS)
  config.advantage.name = "grpo"
  # all rows make the group's baseline, or only those that the correction accepted.
  config.advantage.baseline = "all"

  config.aggregation = ConfigDict()
  config.aggregation.mode = "token_mean"
  # Count the tokens sampled (a rejected one counts as zero) or those accepted.
  config.aggregation.denominator = "sampled"
  # Tokens, for the mode sequence_sum_constant.
  config.aggregation.length = 0

  config.kl = ConfigDict()
  # Of the KL to the policy the run started from; 0 keeps no reference.
  config.kl.coefficient = 0.0
  config.kl.kind = "k2"
  # Weight it by the ratio to the sampler.
  config.kl.weighted = False
  # loss, or reward: taken off the rewards before the advantages.
  config.kl.placement = "loss"

  config.overlong = ConfigDict()
  # Tokens before the limit in which the reward falls; 0 takes nothing off.
  config.overlong.buffer = 0
  # What is taken off at the limit.
  config.overlong.factor = 1.0
  # Leave responses that ran into the limit out of the loss.
  config.overlong.filter = False
  return config


def algorithm_from_config(config: Mapping) -> Algorithm:
  """The `Algorithm` of `config.algorithm`.

  Args:
    config: a ConfigDict, or a mapping, with the keys of `default_config`; those left
      out take its values.

  Returns:
    Algorithm.

  Raises:
    ValueError: an unknown key or name, with the nearest that exists; a required setting
      that is None; a combination that `Algorithm` refuses.

  >>> config = default_config()
  >>> config.loss.ppo.clip_hihg = 0.3
  >>> algorithm_from_config(config)
  Traceback (most recent call last):
  ...
  ValueError: algorithm.loss.ppo has no setting 'clip_hihg'; did you mean 'clip_high'?
  """
  given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
  default = default_config().to_dict()
  _check_names("algorithm", given, default)
  settings = default | {
    name: default[name] | dict(value) if isinstance(default[name], dict) else value
    for name, value in given.items()
  }
  correction, loss = settings["correction"], settings["loss"]
  advantage, aggregation = settings["advantage"], settings["aggregation"]
  kl, overlong = settings["kl"], settings["overlong"]
  for group in ("aggregation", "kl", "overlong"):
    _check_names(f"algorithm.{group}", settings[group], default[group])
  return Algorithm(
    correct=_correction(correction),
    loss=_named("algorithm.loss", POLICY_LOSSES, loss, ("name",)),
    advantage=_named(
      "algorithm.advantage", ESTIMATORS, advantage, ("name", "baseline")
    ),
    baseline=advantage["baseline"],
    aggregation=aggregation["mode"],
    length=aggregation["length"] or None,
    denominator=aggregation["denominator"],
    old_logp=settings["old_logp"],
    kl_coefficient=kl["coefficient"],
    kl_kind=kl["kind"],
    kl_weighted=kl["weighted"],
    kl_placement=kl["placement"],
    overlong_buffer=overlong["buffer"],
    overlong_factor=overlong["factor"],
    overlong_filter=overlong["filter"],
    entropy_coefficient=settings["entropy_coefficient"],
    temperature=settings["temperature"],
    epochs=settings["epochs"],
    mini_batches=settings["mini_batches"],
    micro_batches=settings["micro_batches"],
    shuffle=settings["shuffle"],
  )


def _correction(settings: Mapping) -> corrections.Chain:
  """The chain of the stages that are named; a suffix `_2` tells repetitions apart."""
  path, stages = "algorithm.correction", []
  for name in settings:
    if name not in ("stages", "metrics"):
      _check_name(path, _base(name), STAGES, shown=name)
  # From a command line, `a,b` is one string.
  named = settings["stages"]
  named = (named,) if isinstance(named, str) else named
  for name in [part.strip() for item in named for part in item.split(",")]:
    if not name:
      continue
    _check_name(f"{path}.stages", _base(name), STAGES, shown=name)
    if name not in settings:
      raise ValueError(f"{path}.stages names {name!r}, but {path}.{name} is not there")
    stages.append(_bind(f"{path}.{name}", STAGES[_base(name)], settings[name])())
  return corrections.chain(*stages, metrics=settings["metrics"])


def _named(
  path: str, functions: dict[str, Callable], settings: Mapping, own: tuple
) -> Callable:
  """The function that `settings["name"]` names, with its group's settings bound."""
  for name in settings:
    if name not in own:
      _check_name(path, name, functions | dict.fromkeys(own))
  name = settings["name"]
  _check_name(f"{path}.name", name, functions)
  return _bind(f"{path}.{name}", functions[name], settings.get(name, {}))


def _bind(path: str, function: Callable, settings: Mapping) -> Callable:
  known = _settings(function)
  _check_names(path, settings, known)
  bound = known | dict(settings)
  parameters = inspect.signature(function).parameters
  for name, value in bound.items():
    if value is None and parameters[name].default is inspect.Parameter.empty:
      raise ValueError(f"{path}.{name} has no default and must be set")
  return functools.partial(function, **bound)


def _settings(function: Callable) -> dict:
  """The arguments that are settings, with their defaults; None where there is none."""
  return {
    name: None if parameter.default is inspect.Parameter.empty else parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in _ARRAYS
  }


def _groups(functions: Mapping) -> ConfigDict:
  """One group of settings a function; None becomes a placeholder that takes a value."""
  return ConfigDict(
    {
      name: {
        key: placeholder(object) if value is None else value
        for key, value in _settings(function).items()
      }
      for name, function in functions.items()
    }
  )


def _base(name: str) -> str:
  return re.sub(r"_\d+$", "", name)


def _check_names(path: str, given: Mapping, known: Mapping) -> None:
  for name in given:
    _check_name(path, name, known)


def _check_name(path: str, name: str, known: Mapping, shown: str = "") -> None:
  """Refuses a name that does not exist, and says which one is nearest."""
  if name in known:
    return
  near = difflib.get_close_matches(name, known, 1, 0.5)
  hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(known)}"
  raise ValueError(f"{path} has no setting {(shown or name)!r}; {hint}")
