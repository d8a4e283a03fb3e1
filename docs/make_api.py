"""Writes docs/api/: python docs/make_api.py

A page a package, with every name that the package's `__init__` exports: by its stub, by
`__all__`, or by `import x as x`, and what it defines itself. Exported modules have a
section each; so have all modules of a package whose `__init__` exports nothing.
`tests/docs/test_api_pages.py` holds the pages against the code.
"""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PAGES = {
  "tis_jax.corrections": "corrections.md",
  "tis_jax.corrections.presets": "presets.md",
  "tis_jax.losses": "losses.md",
  "tis_jax.advantages": "advantages.md",
  "tis_jax.logprobs": "logprobs.md",
  "tis_jax.compat": "compat.md",
  "tis_jax.lab": "lab.md",
  "tis_jax.numerics": "numerics.md",
  "tis_jax.models": "models.md",
  "tis_jax.tasks": "tasks.md",
  "tis_jax.engines": "engines.md",
  "tis_jax.engines.served": "served.md",
  "tis_jax.sampler": "sampler.md",
  "tis_jax.rollouts": "rollouts.md",
  "tis_jax.store": "store.md",
  "tis_jax.learner": "learner.md",
  "tis_jax.runner": "runner.md",
  "tis_jax.runner.study": "study.md",
  "tis_jax.doctor": "doctor.md",
  "tis_jax.diagnostics": "diagnostics.md",
  "tis_jax.integrations": "integrations.md",
}
"""The page of each package, in the order of the index."""

MORE_MODULES = {
  "tis_jax.diagnostics": ["tis_jax.diagnostics.plots"],
  "tis_jax.integrations": ["tis_jax.integrations.tunix"],
  "tis_jax.models": ["tis_jax.models.tokenizers", "tis_jax.models.value_head"],
  "tis_jax.tasks": [
    "tis_jax.tasks.gsm8k",
    "tis_jax.tasks.gsm8k_answers",
    "tis_jax.tasks.gsm8k_calculator",
    "tis_jax.tasks.gsm8k_steps",
    "tis_jax.tasks.rewards",
    "tis_jax.tasks.table",
  ],
}
"""Modules that are asked for by their path, and that no `__init__` exports."""

INDEX = """<!-- Made by docs/make_api.py; do not edit. -->

# API

## Packages

{packages}

Those up to `tis_jax.numerics` need jax and numpy alone; the others need the `train`
extra and are imported by name.

## Top level

`import tis_jax as tis`. A name is imported when it is first asked for.

{names}
"""

PAGE = """<!-- Made by docs/make_api.py; do not edit. -->

{sections}
"""


def file_of(module: str) -> Path:
  """The file that says what a module exports."""
  path = ROOT.joinpath(*module.split("."))
  if not path.is_dir():
    return path.with_suffix(".py")
  stub = path / "__init__.pyi"
  return stub if stub.exists() else path / "__init__.py"


def exports(module: str) -> dict[str, str]:
  """What a module exports, in the order of its file, and which module it is from."""
  origins: dict[str, str] = {}
  exported: list[str] = []
  for node in ast.parse(file_of(module).read_text()).body:
    if isinstance(node, ast.ImportFrom):
      origins |= {alias.name: str(node.module) for alias in node.names}
      exported += [alias.name for alias in node.names if alias.name == alias.asname]
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      exported.append(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      target = node.targets[0] if isinstance(node, ast.Assign) else node.target
      if getattr(target, "id", "") == "__all__":
        exported = ast.literal_eval(node.value)
        break
      exported += [target.id] if isinstance(target, ast.Name) else []
  public = [name for name in exported if not name.startswith("_")]
  return {name: origins.get(name, module) for name in public}


def modules(package: str) -> list[str]:
  """The modules that have a section on the page of a package."""
  exported = exports(package)
  found = [f"{package}.{name}" for name in exported if is_module(package, name)]
  if not exported:
    files = sorted(file_of(package).parent.glob("[!_]*.py"))
    found = [f"{package}.{file.stem}" for file in files]
  return [x for x in found + MORE_MODULES.get(package, []) if x not in PAGES]


def members(module: str) -> list[str]:
  """The names that the section of a module shows."""
  return [name for name in exports(module) if not is_module(module, name)]


def shadowed(module: str) -> list[str]:
  """Members that are called as a module beside them, which is what griffe finds."""
  return [name for name in members(module) if file_of(f"{module}.{name}").exists()]


def is_module(package: str, name: str) -> bool:
  """Whether the name that a package exports is a module in it."""
  origin = exports(package)[name]
  return origin == package and file_of(f"{package}.{name}").exists()


def section(module: str, level: int) -> str:
  """What makes mkdocstrings show a module."""
  apart = shadowed(module)
  names = [name for name in members(module) if name not in apart]
  listed = "".join(f"\n        - {name}" for name in names) or " false"
  parts = [_directive(module, f"heading_level: {level}", f"members:{listed}")]
  for name in apart:
    options = (f"heading_level: {level + 1}", "show_root_full_path: false")
    path = f"{exports(module)[name]}.{name}"
    parts += [f"[](){{ #{module}.{name} }}", _directive(path, *options)]
  return "\n\n".join(parts)


def _directive(path: str, *options: str) -> str:
  return "\n      ".join([f"::: {path}\n    options:", *options])


def page(package: str) -> str:
  """The page of a package."""
  sections = [section(package, 1), *(section(name, 2) for name in modules(package))]
  return PAGE.format(sections="\n\n".join(sections))


def index() -> str:
  """The packages, and what `tis.NAME` is."""
  packages = [
    f"| [`{name}`]({file}) | {summary(importlib.import_module(name))} |"
    for name, file in PAGES.items()
  ]
  tis = importlib.import_module("tis_jax")
  names = []
  for name, origin in exports("tis_jax").items():
    path = f"{origin}.{name}"
    link = f"({PAGES[path]})" if path in PAGES else f"[{path}]"
    # The anchor is what links to tis_jax.NAME find.
    anchor = "" if path in PAGES else f"[](){{ #tis_jax.{name} }}"
    names.append(f"| {anchor}[`tis.{name}`]{link} | {summary(getattr(tis, name))} |")
  head = ["| | |", "|---|---|"]
  return INDEX.format(
    packages="\n".join(head + packages), names="\n".join(head + names)
  )


def summary(documented: Any) -> str:
  """The first paragraph of a docstring, as a cell of a table."""
  paragraph = (inspect.getdoc(documented) or "").split("\n\n")[0]
  return " ".join(paragraph.split()).replace("|", "\\|")


def pages() -> dict[str, str]:
  """Every file of docs/api, and what stands in it."""
  return {"index.md": index()} | {file: page(name) for name, file in PAGES.items()}


def main() -> None:
  folder = ROOT / "docs" / "api"
  folder.mkdir(exist_ok=True)
  for name, text in pages().items():
    (folder / name).write_text(text)


if __name__ == "__main__":
  main()
