"""Bounds as users write them: checked where they have a value, traced otherwise."""

import math

import jax
import jax.numpy as jnp

from tis_jax.corrections import ratios


def check_choice(name: str, argument: str, value: str, choices) -> None:
  """Refuses a word that is not among `choices`."""
  if value not in choices:
    raise ValueError(
      f"{name}: {argument} must be one of {list(choices)}, not {value!r}"
    )


def check_bound(name: str, argument: str, value, *, above: float = 0.0) -> None:
  """Refuses a bound that is no number, NaN, or not above `above`.

  A traced value passes: it has no number yet.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if isinstance(value, (bool, str, bytes)) or value is None:
    raise TypeError(f"{name}: {argument} must be a number, not {value!r}")
  if jnp.ndim(value) != 0:
    raise ValueError(f"{name}: {argument} must be a scalar; use vmap for a sweep")
  if not float(value) > above:
    limit = "" if above == -math.inf else f" above {above:g}"
    raise ValueError(f"{name}: {argument} must be a number{limit}, not {value!r}")


def check_order(name: str, low, high) -> None:
  """Refuses a band that nothing can lie in."""
  if not any(isinstance(v, jax.core.Tracer) for v in (low, high)) and low > high:
    raise ValueError(f"{name}: low={low!r} is above high={high!r}, so nothing passes")


def check_band(name: str, low, high) -> None:
  """Refuses a band of ratios with a negative bound, or with the bounds out of order."""
  check_bound(name, "high", high)
  check_bound(name, "low", low, above=-5e-324)
  check_order(name, low, high)


def log_bound(value):
  """The log of a bound on a ratio; -inf for 0.

  Of a plain number it is taken in fp64: as an fp32 number 1.0001 has a log that is off
  by 1e-4 of the band's width.
  """
  if isinstance(value, (jax.core.Tracer, jax.Array)):
    return jnp.log(ratios.as_float(value))
  return math.log(value) if value > 0 else -math.inf
