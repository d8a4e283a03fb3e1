"""The API pages hold every public name and nothing else; the site shows them all."""

import functools
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "api"
MADE = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
PAGES: dict[str, str] = MADE["PAGES"]


@functools.cache
def _made() -> dict[str, str]:
  return MADE["pages"]()


def _shown(file: str) -> dict[str, list[str]]:
  """The members that a page shows of each module; what stands alone is its module's."""
  shown: dict[str, list[str]] = {}
  alone = None
  for line in (FOLDER / file).read_text().splitlines():
    if anchor := re.match(r"\[\]\(\){ #(\S+) }$", line):
      alone = anchor[1]
    elif directive := re.match(r"::: (\S+)$", line):
      if alone:
        module, _, name = alone.rpartition(".")
        shown[module].append(name)
        assert _get(alone) is _get(directive[1])
      else:
        names = shown.setdefault(directive[1], [])
      alone = None
    elif member := re.match(r"        - (\w+)$", line):
      names.append(member[1])
  return shown


def _get(path: str):
  module, _, name = path.rpartition(".")
  return getattr(importlib.import_module(module), name)


def _modules_of(package: str) -> list[str]:
  """The packages and modules below one, outermost first."""
  folder = ROOT.joinpath(*package.split("."))
  files = [*folder.glob("[!_]*.py"), *(x.parent for x in folder.glob("*/__init__.py"))]
  return [f"{package}.{file.stem}" for file in sorted(files)]


@pytest.mark.parametrize("file", ["index.md", *PAGES.values()])
def test_a_page_is_what_the_script_makes(file):
  assert (FOLDER / file).read_text() == _made()[file], "run python docs/make_api.py"


def test_there_is_a_page_for_every_package_and_a_package_for_every_page():
  packages = set(_modules_of("tis_jax"))
  assert packages <= set(PAGES) | {"tis_jax.version", "tis_jax.cli"}
  assert {path.name for path in FOLDER.iterdir()} == {"index.md", *PAGES.values()}
  nav = (ROOT / "mkdocs.yml").read_text()
  assert all(f"- api/{file}\n" in nav for file in ["index.md", *PAGES.values()])


@pytest.mark.parametrize("package", PAGES)
def test_every_name_that_a_package_defines_is_on_its_page(package):
  for module, names in _shown(PAGES[package]).items():
    if module == "tis_jax.integrations.tunix":
      pytest.importorskip("tunix", reason="make test-tunix looks at this one")
    loaded = importlib.import_module(module)
    declared = getattr(loaded, "__all__", None)
    for name in names:
      assert hasattr(loaded, name), f"{module} has no {name}"
      assert declared is None or name in declared, f"{name} is not in {module}.__all__"
    for name, value in vars(loaded).items():
      # A class or a function that lives in the module or below it is its own.
      owner = getattr(value, "__module__", None)
      owned = owner == module or str(owner).startswith(f"{module}.")
      if owned and not name.startswith("_") and (declared is None or name in declared):
        assert name in names, f"{module}.{name} is on no page"


@pytest.mark.parametrize("package", ["tis_jax.numerics", "tis_jax.compat"])
def test_every_module_of_a_namespace_has_a_section(package):
  shown = set(_shown(PAGES[package])) - {package}
  public = {x for x in _modules_of(package) if package != "tis_jax.compat"}
  if package == "tis_jax.compat":
    public = {f"{package}.{name}" for name in importlib.import_module(package).PEERS}
  assert shown == public


def test_the_index_has_every_name_of_the_top_level():
  import tis_jax

  index = (FOLDER / "index.md").read_text()
  listed = set(re.findall(r"\[`tis\.(\w+)`\]", index))
  assert listed == {name for name in tis_jax.__all__ if not name.startswith("_")}
  assert set(re.findall(r"\| \[`(tis_jax\.[\w.]+)`\]", index)) == set(PAGES)


def test_the_site_builds_and_shows_every_name(tmp_path):
  pytest.importorskip("mkdocs", reason="the docs extra is not installed")
  pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path]
  built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert built.returncode == 0, built.stderr
  for file in PAGES.values():
    html = (tmp_path / "api" / Path(file).stem / "index.html").read_text()
    ids = set(re.findall(r'id="([^"]+)"', html))
    for module, names in _shown(file).items():
      assert {module, *(f"{module}.{name}" for name in names)} <= ids
