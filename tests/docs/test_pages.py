"""What the pages show exists: their Python runs, their names and settings are there."""

import importlib.util
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tis_jax as tis
from tis_jax import advantages, losses
from tis_jax.runner import default_config
from tis_jax.runner.recipes import recipes

ROOT = Path(__file__).parents[2]
PAGES = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
  *sorted(ROOT.glob("docs/*.md")),
]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
LOSSES = (ROOT / "docs" / "losses.md").read_text()


def _text(path: Path) -> str:
  if path.suffix == ".md":
    return path.read_text()
  cells = json.loads(path.read_text())["cells"]
  return "\n".join("".join(cell["source"]) for cell in cells)


def _blocks(path: Path) -> list[str]:
  return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def _arrays():
  """What the blocks take for granted: two prompts, two answers each."""
  rng = np.random.default_rng(0)
  mask = jnp.asarray(np.arange(5) < np.array([[5], [3], [4], [1]]))
  logp = lambda: jnp.asarray(-rng.exponential(1.0, (4, 5)), jnp.float32)
  rewards, group_ids = jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.array([0, 0, 1, 1])
  most = lambda: jnp.asarray(np.log(rng.dirichlet(np.ones(4), (4, 5)))[..., :3])
  return {
    "tis": tis,
    "top_logp": most(),
    "top_sampler_logp": most(),
    "sampler_logp": logp(),
    "old_logp": logp(),
    "logp": logp(),
    "mask": mask,
    "rewards": rewards,
    "group_ids": group_ids,
    "advantages": tis.advantages.grpo(rewards, group_ids),
    "correct": tis.chain(tis.truncate(2.0)),
    "config": {"rollout_is": "token"},
  }


def test_the_pages_that_show_python_are_found():
  assert {path.name for path in PAGES if _blocks(path)} >= {"README.md", "losses.md"}


# The how-tos train a policy, twice.
SLOW = ("howto.md",)


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, marks=pytest.mark.slow if path.name in SLOW else ())
    for path in PAGES
    if _blocks(path)
  ],
  ids=lambda path: path.name,
)
def test_python_blocks_run(path):
  namespace = _arrays()
  for block in _blocks(path):
    exec(compile(block, path.name, "exec"), namespace)  # the page is ours
  if "loss" in namespace:
    assert jnp.isfinite(namespace["loss"])


@pytest.mark.parametrize("path", PAGES + NOTEBOOKS, ids=lambda path: path.name)
def test_names_in_the_pages_exist(path):
  for name in set(re.findall(r"\btis(?:_jax)?(?:\.\w+)+", _text(path))):
    assert _exists(name.replace("tis.", "tis_jax.", 1)), f"{path.name}: no {name}"


def _exists(path: str) -> bool:
  parts = path.split(".")
  found = importlib.import_module(parts[0])
  for i, name in enumerate(parts[1:], 2):
    if not hasattr(found, name):
      try:
        importlib.import_module(".".join(parts[:i]))
      except ImportError:
        # A module that is there, and needs another framework to be imported.
        return i == len(parts) and importlib.util.find_spec(path) is not None
    found = getattr(found, name)
  return True


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_in_the_pages_exist(path):
  for name in set(
    re.findall(r"\bconfig\.(?!json)(\w+(?:\.\w+)*)[=`]", path.read_text())
  ):
    config = default_config()
    for part in name.split("."):
      assert part in config, f"{path.name}: no config.{name}"
      config = config[part]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_in_the_pages_exist(path):
  text = re.sub(r"https?://\S+", "", path.read_text())
  folders = "configs|docs|experiments|examples|benchmarks|notebooks|tests|tis_jax"
  for file in set(re.findall(rf"\b(?:{folders})/[\w/]+\.(?:py|md|ipynb|txt)\b", text)):
    there = (ROOT / file).exists() or (ROOT / "docs" / file).exists()
    assert there, f"{path.name}: no {file}"
  for recipe in set(re.findall(r"--config=(\w+)\b(?!/)", text)):
    assert recipe in recipes(), f"{path.name}: no {recipe}"


def _first_column(heading: str, page: str = LOSSES) -> list[str]:
  section = page[page.index(f"## {heading}\n") :].split("\n## ")[0]
  cells = re.findall(r"^\| ([^|]*`[^|]*) \|", section, flags=re.M)
  return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_tables_of_losses_and_advantages_are_complete():
  assert sorted(_first_column("Policy losses")) == sorted(losses.POLICY_LOSSES)
  assert sorted(_first_column("Aggregation")) == sorted(losses.MODES)
  assert {"k1", "k2", "k3", "abs"} <= set(_first_column("KL and entropy"))
  estimators = _first_column("Advantages")
  assert set(estimators) >= set(advantages.ESTIMATORS)
  assert all(hasattr(advantages, name) for name in estimators)
