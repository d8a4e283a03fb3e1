"""Settings as configs: what a person edits and a command line overrides, and back.

A setting is stated once, where it is used: as a field of a frozen dataclass with its
default and its documentation, or as an argument of a function (a stage, a loss, an
estimator) that a group is named after. An `ml_collections` config is made of those
statements, and read back into them. Names that do not exist are refused, with the
nearest that does.
"""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tis_jax.numerics.arguments import check_name, defaults_of

T = TypeVar("T")


class ConfigError(ValueError):
  """Settings that are impossible or contradict each other."""


def config_of(cls: type, *, without: Collection[str] = ()) -> ConfigDict:
  """The config of a dataclass of settings, with their defaults; nested ones are groups.

  Fields without a default are left out. None becomes a placeholder of the field's type.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Train:
  ...   steps: int = 300
  ...   limit: float | None = None
  >>> config_of(Train).to_dict()
  {'limit': None, 'steps': 300}
  """
  hints = get_type_hints(cls)
  config = ConfigDict()
  for field in dataclasses.fields(cls):
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    if field.name in without or value is dataclasses.MISSING:
      continue
    if dataclasses.is_dataclass(value):
      config[field.name] = config_of(type(value))
    elif value is None:
      kinds = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
      config[field.name] = placeholder(kinds[0])
    else:
      config[field.name] = ConfigDict(value) if isinstance(value, Mapping) else value
  return config


def settings_of(cls: type[T], config: Mapping, path: str, **more: Any) -> T:
  """A dataclass of settings from its config.

  Args:
    cls: the dataclass.
    config: a mapping with some of its fields; the others take their defaults.
    path: where the config stands, for messages.
    **more: fields that the config does not have.

  Raises:
    ConfigError: an unknown name, or what the dataclass refuses, with the path.

  >>> from tis_jax.learner import KL
  >>> settings_of(KL, {"kin": "k1"}, "algorithm.kl")
  Traceback (most recent call last):
  ...
  tis_jax.runner.config.ConfigError: algorithm.kl has no setting 'kin'; did you ...
  """
  fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in more}  # type: ignore
  values = {}
  for name in config:
    with refusing():
      check_name(path or "the config", name, fields)
    value, default = config[name], fields[name].default
    if dataclasses.is_dataclass(default):
      value = settings_of(type(default), value, f"{path}.{name}")
    elif isinstance(value, (ConfigDict, Mapping)):
      value = dict(value)
    elif isinstance(value, list):
      value = tuple(value)
    values[name] = value
  with refusing(path):
    return cls(**values, **more)


def group_of(function: Callable, *, without: Collection[str] = ()) -> ConfigDict:
  """The config of a function's arguments, with their defaults.

  An argument that has none, or None, is a placeholder that takes any value.

  >>> from tis_jax.corrections import truncate
  >>> group_of(truncate).to_dict()
  {'high': 2.0, 'level': 'token'}
  """
  return ConfigDict(
    {
      name: placeholder(object) if value is None else value
      for name, value in defaults_of(function, without).items()
    }
  )


@contextlib.contextmanager
def refusing(path: str = "") -> Iterator[None]:
  """What is refused inside is said as a `ConfigError`, with the setting's place."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def docs_of(documented: Any) -> dict[str, str]:
  """What the docstring of a dataclass or a function says of each field or argument.

  >>> from tis_jax.learner import Overlong
  >>> docs_of(Overlong)["factor"]
  'what is taken off at the limit.'
  """
  text = inspect.getdoc(documented) or ""
  found = re.search(r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
  items = re.split(r"^  (?=\w[\w, ]*:)", found[1] if found else "", flags=re.M)
  docs = {}
  for item in items[1:]:
    names, _, meaning = item.partition(":")
    for name in names.split(","):
      docs[name.strip()] = " ".join(meaning.split())
  return docs
