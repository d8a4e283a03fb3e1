"""Values of a peer's options: what cannot be right is named, with the peer."""

import math
from typing import Any


def choice(peer: str, key: str, value: Any, choices: tuple) -> Any:
  """`value`, if it is one of `choices`.

  >>> choice("slime", "tis_mode", "drop", ("truncate", "clip", "mask"))
  Traceback (most recent call last):
  ...
  ValueError: slime: tis_mode must be one of 'truncate', 'clip', 'mask'; got 'drop'
  """
  if value not in choices:
    raise ValueError(f"{peer}: {key} must be one of {_list(choices)}; got {value!r}")
  return value


def flag(peer: str, key: str, value: Any) -> bool:
  """`value`, if it is a bool."""
  if not isinstance(value, bool):
    raise ValueError(f"{peer}: {key} must be true or false; got {value!r}")
  return value


def number(
  peer: str,
  key: str,
  value: Any,
  *,
  above: float | None = None,
  at_least: float | None = None,
) -> float:
  """`value` as a float; text such as `"1e-4"`, as YAML leaves it, is read.

  >>> number("verl", "clip_ratio_c", "3", above=1.0)
  3.0
  >>> number("SkyRL", "tis_imp_ratio_cap", -1.0, above=0.0)
  Traceback (most recent call last):
  ...
  ValueError: SkyRL: tis_imp_ratio_cap must be above 0; got -1.0
  """
  try:
    result = float("nan") if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    result = float("nan")
  if math.isnan(result):
    raise ValueError(f"{peer}: {key} must be a number; got {value!r}")
  if above is not None and not result > above:
    raise ValueError(f"{peer}: {key} must be above {above:g}; got {value!r}")
  if at_least is not None and not result >= at_least:
    raise ValueError(f"{peer}: {key} must be at least {at_least:g}; got {value!r}")
  return result


def band(
  peer: str, low_key: str, low: Any, high_key: str, high: Any, *, above: float = 0.0
) -> tuple[float, float]:
  """Two bounds of a ratio, both positive and in order.

  >>> band("ROLL", "ratio_low", 1.2, "ratio_high", 0.8)
  Traceback (most recent call last):
  ...
  ValueError: ROLL: ratio_low (1.2) is above ratio_high (0.8); nothing would pass
  """
  low = number(peer, low_key, low, above=above)
  high = number(peer, high_key, high, above=above)
  order(peer, low_key, low, high_key, high)
  return low, high


def order(peer: str, low_key: str, low: float, high_key: str, high: float) -> None:
  """Refuses two bounds that nothing can lie between."""
  if low > high:
    raise ValueError(
      f"{peer}: {low_key} ({low:g}) is above {high_key} ({high:g}); nothing would pass"
    )


def _list(choices: tuple) -> str:
  return ", ".join(repr(item) for item in choices)
