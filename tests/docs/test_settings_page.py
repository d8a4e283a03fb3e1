"""Every setting of a run has a meaning, and docs/settings.md says it."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from tis_jax.runner import Settings, default_config
from tis_jax.runner.config import docs_of

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "make_settings.py"))
CLASSES = [cls for _, cls, _ in MADE["groups_of"](Settings, default_config().to_dict())]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_has_a_meaning(cls):
  meanings = docs_of(cls)
  assert list(meanings) == [field.name for field in dataclasses.fields(cls)]
  assert all(meanings.values())


def test_the_page_is_what_the_script_makes():
  page = (DOCS / "settings.md").read_text()
  assert page == MADE["page"](), "run python docs/make_settings.py"


def _paths(config, path=()):
  for name, value in config.items():
    if isinstance(value, dict) and value:
      yield from _paths(value, (*path, name))
    elif value != {} or name in ("options", "peer_options"):
      yield (*path, name)


def test_the_page_has_every_setting_of_a_run():
  page = (DOCS / "settings.md").read_text()
  listed = set()
  for section in re.split(r"^##+ ", page, flags=re.M)[1:]:
    title = section.split("\n")[0]
    listed |= {
      f"{title}.{name}" for name in re.findall(r"^\| `([\w.]+)` \|", section, re.M)
    }
  paths = {".".join(("config", *path)) for path in _paths(default_config().to_dict())}
  assert listed == paths
