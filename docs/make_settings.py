"""Writes docs/settings.md: python docs/make_settings.py

Names and defaults are those of `tis_jax.runner.default_config()`, meanings those of the
docstrings of what the settings configure.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from tis_jax.advantages import ESTIMATORS
from tis_jax.compat import PEERS
from tis_jax.corrections import STAGES
from tis_jax.learner import make_mesh
from tis_jax.losses import POLICY_LOSSES
from tis_jax.runner import Settings, default_config
from tis_jax.runner.config import docs_of

PAGE = """# Settings

<!-- Made by docs/make_settings.py; do not edit. -->

Every setting of a run, with its default. A recipe sets what it needs, and the command
line has the last word: `--config.train.steps=100`. A name that does not exist is
refused, with the nearest that does.

{groups}

### config.algorithm.correction

The stages are functions of [`tis_jax.corrections`](api/corrections.md), and the
settings their arguments. Those that `stages` does not name are not used. A stage that a
chain holds twice takes a suffix: `stages = ("reject", "reject_2")`, with `reject_2` set
in the recipe.

{correction}

### config.algorithm.loss

The losses are functions of [`tis_jax.losses`](api/losses.md); [Losses](losses.md) has
their formulas. The one that `name` names is used.

{loss}

### config.algorithm.advantage

The estimators are functions of [`tis_jax.advantages`](api/advantages.md). The one that
`name` names is used.

{advantage}
"""

FUNCTIONS = {"correction": STAGES, "loss": POLICY_LOSSES, "advantage": ESTIMATORS}
CHOICES = {
  "stages": "names of stages, in the order in which they are applied; none only "
  "watches. On the command line `veto,truncate`.",
  "metrics": '"none", "core", or "full": percentiles, and log-ratios by position and '
  "staleness.",
  "name": "one of those below.",
}
"""The groups of `config.algorithm` that hold functions, and what else is in them."""

PEER = {
  "peer": "whose configuration decides the algorithm, one of "
  f"{', '.join(PEERS)}; empty for none. See [Translation](translation.md#in-a-run).",
  "peer_options": "that configuration, whole or a section; checked by the peer's "
  "dialect. On the command line `peer_options.rollout_is=token`, or a file with "
  "`--peer` and `--peer_config`.",
}
"""What of `config.algorithm` is no field of `Algorithm`."""

APART = (*FUNCTIONS, "mesh")
"""Groups that have a section of their own."""


def groups_of(
  cls: type, config: Mapping, path: str = "config"
) -> Iterator[tuple[str, type, Mapping]]:
  """Every dataclass of settings in a run's, where it stands, and its defaults."""
  yield path, cls, config
  for name, hint in get_type_hints(cls).items():
    if name in config and dataclasses.is_dataclass(hint):
      yield from groups_of(hint, config[name], f"{path}.{name}")


def group(path: str, cls: type, config: Mapping) -> str:
  """A section: the settings of one dataclass."""
  docs = docs_of(cls)
  rows = [
    row(name, shown(config[name]), docs[name])
    for name, hint in get_type_hints(cls).items()
    if name in config and name not in APART and not dataclasses.is_dataclass(hint)
  ]
  rows += [row(x, shown(config[x]), PEER[x]) for x in PEER if x in config]
  about = (inspect.getdoc(cls) or "").split("\n\n")[0]
  level = "###" if path.count(".") > 1 else "##"
  return f"{level} {path}\n\n{about}\n\n{table(rows)}"


def arguments(
  name: str, functions: Mapping[str, Callable], config: Mapping, prefix: str = ""
) -> list[str]:
  """The rows of a function's settings."""
  docs = meanings(name, functions)
  return [
    row(prefix + argument, shown(config[argument], parameter.default), docs[argument])
    for argument, parameter in inspect.signature(functions[name]).parameters.items()
    if argument in config
  ]


def meanings(name: str, functions: Mapping[str, Callable]) -> dict[str, str]:
  """What a function says of its arguments, or the one whose arguments it has."""
  text = inspect.getdoc(functions[name]) or ""
  same = re.search(r"rguments, returns and errors are\s+those of\s+`(\w+)`", text)
  borrowed = meanings(same[1], functions) if same else {}
  return borrowed | docs_of(functions[name])


def functions_group(name: str, config: Mapping) -> str:
  """A section: which functions, and the settings of each."""
  functions = FUNCTIONS[name]
  rows = [row(x, shown(config[x]), CHOICES[x]) for x in CHOICES if x in config]
  for function in sorted(functions):
    rows += arguments(function, functions, config[function], f"{function}.")
  plain = [f"`{x}`" for x in sorted(functions) if not config[x]]
  return table(rows) + (f"\n\nWithout settings: {', '.join(plain)}." if plain else "")


def row(name: str, default: str, meaning: str) -> str:
  """One setting. What a function takes under jit is of no concern to a config."""
  meaning = meaning.replace("; may be traced", "").replace(" May be traced.", "")
  return f"| `{name}` | {default} | {meaning} |"


def shown(value: Any, default: Any = None) -> str:
  """A default, as a person writes it."""
  if default is inspect.Parameter.empty:
    return "required"
  if value is None or isinstance(value, bool | Mapping):
    return f"`{value}`"
  if isinstance(value, tuple):
    return f"`{','.join(value)}`"
  if isinstance(value, float):
    return f"`{value:g}`"
  return f"`{value}`" if value != "" else "empty"


def table(rows: list[str]) -> str:
  """Settings, one a row."""
  return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def page() -> str:
  """What stands in docs/settings.md."""
  config = default_config().to_dict()
  groups = {path: group(path, *rest) for path, *rest in groups_of(Settings, config)}
  rows = arguments("mesh", {"mesh": make_mesh}, config["mesh"])
  about = (inspect.getdoc(make_mesh) or "").split("\n\n")[0]
  groups["config.mesh"] = f"## config.mesh\n\n{about}\n\n{table(rows)}"
  # The algorithm comes last: what it names follows.
  last = [path for path in groups if path.startswith("config.algorithm")]
  ordered = [path for path in groups if path not in last] + last
  made = {name: functions_group(name, config["algorithm"][name]) for name in FUNCTIONS}
  return PAGE.format(groups="\n\n".join(groups[path] for path in ordered), **made)


if __name__ == "__main__":
  (Path(__file__).parent / "settings.md").write_text(page())
