"""Names that are imported when they are first asked for.

`import tis_jax.store` runs `tis_jax/__init__.py` first, which must not import jax to do
so; nor must `tis_jax/logprobs/__init__.py`, beside the contract that records carry.
The names stand in the stub beside the package, `__init__.pyi`, once: for type
checkers and for this (SPEC 1 of Scientific Python).
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable, Callable, list[str]]:
  """`__getattr__`, `__dir__` and `__all__` of a package, from its stub.

  Args:
    package: its `__name__`.
    file: its `__file__`; the stub has the same name, ending in `.pyi`.
  """
  homes: dict[str, tuple[str, str]] = {}
  for node in ast.parse(Path(file).with_suffix(".pyi").read_text()).body:
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        homes[alias.asname or alias.name] = (node.module or "", alias.name)

  def get(name: str) -> Any:
    if name not in homes:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, attribute = homes[name]
    if module == package:
      return importlib.import_module(f"{package}.{attribute}")
    return getattr(importlib.import_module(module), attribute)

  return get, lambda: sorted(homes), sorted(homes)
