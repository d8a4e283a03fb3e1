"""Arguments of functions as settings: their defaults, and binding them by name."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tis_jax.numerics.names import did_you_mean


def check_name(path: str, name: str, known: Collection[str], shown: str = "") -> None:
  """Refuses a name that does not exist, and says which one is nearest.

  >>> check_name("loss.ppo", "clip_hihg", ["clip_low", "clip_high"])
  Traceback (most recent call last):
  ValueError: loss.ppo has no setting 'clip_hihg'; did you mean 'clip_high'?
  """
  if name not in known:
    hint = did_you_mean(name, known)
    raise ValueError(f"{path} has no setting {(shown or name)!r}{hint}")


def defaults_of(function: Callable, without: Collection[str] = ()) -> dict[str, Any]:
  """The arguments that are settings, with their defaults; None where there is none.

  >>> from tis_jax.corrections import truncate
  >>> defaults_of(truncate)
  {'high': 2.0, 'level': 'token'}
  """
  return {
    name: None if parameter.default is inspect.Parameter.empty else parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in without
  }


def bind(
  path: str, function: Callable, settings: Mapping, without: Collection[str] = ()
) -> functools.partial:
  """`function` with its defaults and `settings` bound.

  Args:
    path: where the settings stand, for messages.
    function: whose arguments they are.
    settings: some of its arguments by name.
    without: arguments that are no settings.

  Raises:
    ValueError: an unknown name, or an argument without a default that is not set.

  >>> from tis_jax.corrections import truncate
  >>> bind("truncate", truncate, {"high": 3.0})()
  truncate(high=3.0, level='token')
  """
  known = defaults_of(function, without)
  for name in settings:
    check_name(path, name, known)
  bound = known | {name: settings[name] for name in settings}
  parameters = inspect.signature(function).parameters
  for name, value in bound.items():
    if value is None and parameters[name].default is inspect.Parameter.empty:
      raise ValueError(f"{path}.{name} has no default and must be set")
  return functools.partial(function, **bound)
