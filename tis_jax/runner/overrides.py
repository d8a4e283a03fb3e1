"""Settings on the command line: `--config.train.steps=5`."""

import ast
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from tis_jax.numerics.arguments import check_name
from tis_jax.runner.config import ConfigError, refusing

_FREE = ("data.options", "algorithm.peer_options")
"""Groups whose names others know: the task, and a peer's dialect, which check them."""


def override(config: ConfigDict, arguments: Sequence[str]) -> None:
  """Sets what `arguments` say, each `--config.NAME=VALUE` or two of them.

  A value takes the type of the setting: `a,b` is a tuple where the setting is one, and
  `none` is None where that has a meaning.

  Raises:
    ConfigError: a name that does not exist, with the nearest that does; a value of
      another type; an argument that is no setting.

  >>> from tis_jax.runner import default_config
  >>> config = default_config()
  >>> override(config, ["--config.train.steps=5", "--config.log.tensorboard", "true"])
  >>> config.train.steps, config.log.tensorboard
  (5, True)
  >>> override(config, ["--config.train.step=5"])
  Traceback (most recent call last):
  ...
  tis_jax.runner.config.ConfigError: train has no setting 'step'; did you mean 'steps'?
  """
  left = list(arguments)
  while left:
    argument = left.pop(0)
    if not argument.startswith("--config."):
      raise ConfigError(
        f"what is {argument!r}? settings are written --config.NAME=VALUE"
      )
    name, equals, text = argument.removeprefix("--config.").partition("=")
    if not equals:
      if not left:
        raise ConfigError(f"--config.{name} has no value")
      text = left.pop(0)
    _set(config, name, text)


def _set(config: ConfigDict, name: str, text: str) -> None:
  *groups, last = name.split(".")
  group, path = config, ""
  for free in _FREE:
    if name.startswith(f"{free}."):
      _set_freely(config, name, _literal(text))
      return
  for part in groups:
    with refusing():
      check_name(path or "the config", part, list(group))
    group, path = group[part], f"{path}.{part}".lstrip(".")
    if not isinstance(group, ConfigDict):
      raise ConfigError(f"{path} is a setting, not a group of them")
  with refusing():
    check_name(path or "the config", last, list(group))
  if isinstance(group[last], ConfigDict):
    inside = ", ".join(group[last])
    raise ConfigError(f"{name} is a group of settings: {inside}")
  try:
    group[last] = _value(text, group[last])
  except (ValueError, TypeError) as error:
    kind = type(group[last]).__name__
    raise ConfigError(f"{name} wants a value of type {kind}, got {text!r}") from error


def _set_freely(config: ConfigDict, name: str, value: Any) -> None:
  *groups, last = name.split(".")
  with config.unlocked():
    for part in groups:
      if part not in config:
        config[part] = ConfigDict()
      config = config[part]
    config[last] = value


def _value(text: str, now: Any) -> Any:
  """`text` in the type of the value that is there."""
  if isinstance(now, str):
    return text
  if isinstance(now, tuple):
    value = _literal(text)
    return tuple(value) if isinstance(value, (tuple, list)) else tuple(text.split(","))
  return _literal(text)


def as_text(value: Any) -> str:
  """A value as the command line takes it: what `override` reads back as that value.

  >>> as_text(("veto", "truncate")), as_text(()), as_text(None), as_text(2e-4)
  ('veto,truncate', '()', 'none', '0.0002')
  """
  if isinstance(value, str):
    return value
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (tuple, list)) and value and all(map(_is_word, value)):
    return ",".join(value)
  return repr(tuple(value) if isinstance(value, list) else value)


def _is_word(value: Any) -> bool:
  return isinstance(value, str) and value.isidentifier()


def _literal(text: str) -> Any:
  words = {"true": True, "false": False, "none": None, "inf": float("inf")}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
