"""The resolved config of a run: written down, and held against a later attempt's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# What may change between two attempts at one run without making it another run.
_FREE = ("train.steps", "sampler.count", "eval.", "checkpoint.", "log.")


class ConfigChangedError(ValueError):
  """A workdir holds a run with other settings."""


def keep_config(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json`, or checks that the one there is of the same run.

  Raises:
    ConfigChangedError: the workdir's run has other settings; says which.
  """
  path = workdir / "config.json"
  settings = json.loads(config.to_json_best_effort())
  if path.exists():
    before, now = flat(json.loads(path.read_text())), flat(settings)
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
  path.write_text(json.dumps(settings, indent=2) + "\n")


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
