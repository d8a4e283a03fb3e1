"""References inside a configuration, as OmegaConf writes them."""

import re
from collections.abc import Mapping
from typing import Any

from tis_jax.compat.options.command_line import scalar

Path = tuple[str, ...]


def resolve(peer: str, tree: Mapping[str, Any], path: Path, value: Any) -> Any:
  """`value`, or what the interpolation that it is stands for."""
  for _ in range(8):  # a chain of references; a circle ends
    if not isinstance(value, str) or "$" not in value:
      return value
    match = re.fullmatch(r"\$\{(oc\.select:)?(\.?[\w.]+)(?:,(.*))?\}", value)
    if match is None:
      break
    target = split(match[2].lstrip("."))
    target = (*path[:-1], *target) if match[2].startswith(".") else target
    found, known = _lookup(tree, target)
    if not known and not (match[1] and match[3] is not None):
      break
    value = found if known else scalar(peer, path[-1], match[3])
    path = target
  raise ValueError(
    f"{peer}: {path[-1]} is {value!r}, which nothing in this config answers; write the "
    "value itself"
  )


def _lookup(tree: Mapping[str, Any], path: Path) -> tuple[Any, bool]:
  node: Any = tree
  for key in path:
    if not isinstance(node, dict) or key not in node:
      return None, False
    node = node[key]
  return node, True


def split(section: str) -> Path:
  """A dotted path as its parts; the root has none."""
  return tuple(section.split(".")) if section else ()
