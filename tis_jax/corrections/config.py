"""Chains as plain settings, such as JSON holds, and back."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tis_jax.corrections.adaptive import adaptive_truncate
from tis_jax.corrections.binary_kl import reject_binary_kl
from tis_jax.corrections.corrector import Chain, chain
from tis_jax.corrections.divergences import (
  reject_divergence,
  reject_negative_divergence,
  reject_probability_difference,
)
from tis_jax.corrections.normalization import normalize, scale_by_ess
from tis_jax.corrections.rejections import reject, reject_missing, veto
from tis_jax.corrections.second_moment import reject_second_moment
from tis_jax.corrections.stage import Stage, watch
from tis_jax.corrections.staleness import reject_stale, truncate_parts
from tis_jax.corrections.weights import clip, importance, truncate, zero_outside
from tis_jax.numerics.arguments import bind, check_name, defaults_of

STAGES: dict[str, Callable[..., Stage]] = {
  "adaptive_truncate": adaptive_truncate,
  "clip": clip,
  "importance": importance,
  "normalize": normalize,
  "reject": reject,
  "reject_binary_kl": reject_binary_kl,
  "reject_divergence": reject_divergence,
  "reject_missing": reject_missing,
  "reject_negative_divergence": reject_negative_divergence,
  "reject_probability_difference": reject_probability_difference,
  "reject_second_moment": reject_second_moment,
  "reject_stale": reject_stale,
  "scale_by_ess": scale_by_ess,
  "truncate": truncate,
  "truncate_parts": truncate_parts,
  "veto": veto,
  "zero_outside": zero_outside,
}
"""Every stage, by the name that a config calls it."""


def to_config(correct: Chain) -> dict[str, Any]:
  """A chain of the stages in `STAGES` as plain settings.

  Returns:
    `stages`, their names in order; `metrics`; and the arguments of each stage under its
    name. The second stage of a name is called NAME_2; one that is only watched stands
    as watch:NAME among the names.

  Raises:
    ValueError: a stage that is not in `STAGES`, or whose threshold is traced.

  >>> from tis_jax.corrections import reject, truncate
  >>> to_config(chain(truncate(2.0)))
  {'stages': ['truncate'], 'metrics': 'core', 'truncate': {'high': 2.0, ...}}
  """
  names, settings = [], {}
  for stage in correct.stages:
    if stage.name not in STAGES:
      raise ValueError(
        f"{stage.name} is no stage of tis_jax, so a config cannot name it"
      )
    nth = sum(_base(name) == stage.name for name in settings) + 1
    group = stage.name if nth == 1 else f"{stage.name}_{nth}"
    names.append(f"watch:{group}" if stage.watched else group)
    settings[group] = {x: _plain(x, y) for x, y in stage.settings.items()}
  return {"stages": names, "metrics": correct.metrics, **settings}


def from_config(config: Mapping[str, Any], path: str = "correction") -> Chain:
  """The chain that a config names.

  Args:
    config: `stages`, names in order, or one string with commas between them; `metrics`,
      "core" by default; arguments of stages under their names. A name may end in _2,
      _3, ..., for stages that a chain holds more than once; watch:NAME only watches.
      Settings of stages that are not named are checked and not used.
    path: where the config stands, for messages.

  Raises:
    ValueError: an unknown name, with the nearest that exists, or what a stage or
      `chain` refuses.

  >>> from_config({"stages": "veto, truncate", "truncate": {"high": 3.0}})
  chain(veto(low=0.0001, high=None), truncate(high=3.0, level='token'))
  """
  for name, settings in config.items():
    if name not in ("stages", "metrics"):
      check_name(path, _base(name), STAGES, shown=name)
      for setting in settings:
        check_name(f"{path}.{name}", setting, defaults_of(STAGES[_base(name)]))
  named = config.get("stages", ())
  named = (named,) if isinstance(named, str) else named
  stages = []
  for name in [part.strip() for item in named for part in item.split(",")]:
    if not name:
      continue
    watched, name = name.startswith("watch:"), name.removeprefix("watch:")
    check_name(f"{path}.stages", _base(name), STAGES, shown=name)
    if name not in config and name != _base(name):
      raise ValueError(f"{path}.stages names {name!r}, but {path}.{name} is not there")
    make = bind(f"{path}.{name}", STAGES[_base(name)], config.get(name, {}))
    stages.append(watch(make()) if watched else make())
  return chain(*stages, metrics=config.get("metrics", "core"))


def _plain(name: str, value: Any) -> Any:
  if isinstance(value, jax.core.Tracer):
    raise ValueError(f"{name} is traced, so it has no value to write down")
  return (
    value.item() if isinstance(value, (jax.Array, np.ndarray, np.generic)) else value
  )


def _base(name: str) -> str:
  return re.sub(r"_\d+$", "", name)
