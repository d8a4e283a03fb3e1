"""The resolved config of a run: written down, and held against a later attempt's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# What may change between two attempts at one run without making it another run.
_FREE = ("train.steps", "sampler.count", "eval.", "checkpoint.", "log.")


class ConfigError(ValueError):
  """Settings that are impossible or contradict each other."""


class ConfigChangedError(ConfigError):
  """A workdir holds a run with other settings."""


def check_config(config: ConfigDict, workdir: Path) -> None:
  """Holds the settings against those of the run that the workdir holds, if any.

  Raises:
    ConfigChangedError: the workdir's run has other settings; says which.
  """
  path = workdir / "config.json"
  if path.exists():
    before, now = flat(json.loads(path.read_text())), flat(_settings(config))
    changed = [
      f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
      for name in sorted(before.keys() | now.keys())
      if before.get(name) != now.get(name) and not name.startswith(_FREE)
    ]
    if changed:
      raise ConfigChangedError(
        f"{workdir} holds a run with other settings; use another --workdir, or the "
        "settings it began with:\n  " + "\n  ".join(changed)
      )


def keep_config(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json`."""
  text = json.dumps(_settings(config), indent=2)
  (workdir / "config.json").write_text(text + "\n")


def _settings(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested settings by their dotted names.

  >>> flat({"a": {"b": 1}, "c": 2})
  {'a.b': 1, 'c': 2}
  """
  items = {}
  for name, value in settings.items():
    if isinstance(value, Mapping) and value:
      items |= flat(value, f"{prefix}{name}.")
    else:
      items[f"{prefix}{name}"] = value
  return items
