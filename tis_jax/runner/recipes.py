"""Configs by name: the recipes that come with the library, or anybody's file."""

import importlib.util
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import tis_jax
from tis_jax.numerics.names import did_you_mean
from tis_jax.runner.config import ConfigError


def recipes() -> list[str]:
  """The names of the recipes that come with the library.

  >>> "quickstart" in recipes()
  True
  """
  return sorted(path.stem for path in _folder().glob("*.py"))


def load_recipe(name: str) -> ConfigDict:
  """The config of `NAME` or `NAME:ARG`, where NAME is a recipe or a Python file.

  The file has `get_config()`, or `get_config(ARG)`.

  Raises:
    ConfigError: there is no such recipe or file, it has no such ARG, or it is a study.

  >>> load_recipe("quickstart").train.steps
  600
  """
  config = load_file(name)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"{name} is a study, of several runs: tis study --config={name}")
  return config


def load_file(name: str) -> Any:
  """What `get_config` of a recipe or a file returns: a config, or a study.

  Raises:
    ConfigError: there is no such recipe or file, or it has no such ARG.
  """
  file, colon, argument = name.partition(":")
  path = Path(file)
  if path.suffix != ".py":
    path = _folder() / f"{file}.py"
  if not path.exists():
    raise ConfigError(f"no recipe or file {file!r}{did_you_mean(file, recipes())}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None, "a path that ends in .py"
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    return module.get_config(argument) if colon else module.get_config()
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{name}: {error}") from error


def _folder() -> Path:
  """In a wheel the recipes lie in the package, in a checkout beside it."""
  package = Path(tis_jax.__file__).parent
  packaged = package / "recipes"
  return packaged if packaged.is_dir() else package.parent / "configs"
