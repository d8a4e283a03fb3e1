"""Reading a peer's configuration: every mistake in it is named, with the peer.

The peers read their options one by one and ignore what they do not know, so that a
misspelt key silently trains without correction. Here a config fails when it is built.
"""

import math
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tis_jax.numerics.names import did_you_mean

Config = Mapping[str, Any] | str | Sequence[str] | None
Path = tuple[str, ...]


def read(
  peer: str, config: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """The options of `config` over the peer's `defaults`.

  Raises:
    TypeError: `config` is not a mapping.
    ValueError: a key is unknown; the message names it, the peer, and the nearest key.

  >>> read("verl", {"rollout_is": "token"}, {"rollout_is": None, "rollout_rs": None})
  {'rollout_is': 'token', 'rollout_rs': None}
  >>> read("verl", {"rollout_si": "token"}, {"rollout_is": None})
  Traceback (most recent call last):
  ...
  ValueError: verl has no option 'rollout_si'; did you mean 'rollout_is'?
  """
  if config is None:
    return dict(defaults)
  if not hasattr(config, "keys"):
    raise TypeError(f"{peer}: the config must be a mapping, got {config!r}")
  for key in config.keys():  # noqa: SIM118 (ConfigDict iterates otherwise)
    if key not in defaults:
      hint = did_you_mean(key, defaults)
      raise ValueError(f"{peer} has no option {key!r}{hint}")
  return {**defaults, **{key: config[key] for key in config.keys()}}  # noqa: SIM118


class Sections(NamedTuple):
  """Where the options of a peer stand in its configuration.

  Sections are dotted paths from the root of the peer's YAML.

  Attributes:
    peer: the peer's name in messages.
    readers: for each function here, the sections it reads and its options in each.
    others: the names in a section that nothing here reads; a section itself, named in
      the one above it, stands for all that is in it. The root is "".
  """

  peer: str
  readers: Mapping[str, Mapping[str, Sequence[str]]]
  others: Mapping[str, Sequence[str]]

  def locate(self, config: Config, reader: str) -> dict[str, Any]:
    """The options of one reader, from its own section or a whole configuration.

    A configuration may start at the root, at the section or anywhere between:
    `{"algorithm": {"gamma": 1}}`, `{"algorithm.gamma": 1}`, `{"gamma": 1}` and the
    command line's `"algorithm.gamma=1"` say the same. `${a.b}` and `${oc.select:a.b,c}`
    are followed. What another function here reads is passed over (`used` lists it), and
    what nothing here reads is said in a warning.

    Raises:
      TypeError: the config is neither a mapping nor overrides.
      ValueError: a key that the peer does not have, with the nearest it has; an option
        given twice with different values; an interpolation without an answer.

    >>> sections = Sections("verl", {"advantages": {"algorithm": ("gamma", "lam")}}, {})
    >>> sections.locate("algorithm.gamma=0.9 algorithm.lam=1", "advantages")
    {'gamma': 0.9, 'lam': 1}
    >>> sections.locate({"algorithm": {"gama": 0.9}}, "advantages")
    Traceback (most recent call last):
    ...
    ValueError: verl has no option 'gama' in algorithm; did you mean 'gamma'?
    """
    tree = parse(self.peer, config)
    found: dict[str, Any] = {}
    unread = []
    for path, value, readers in self._walk(tree, reader):
      if not readers:
        unread.append(".".join(path))
      if reader not in readers:
        continue
      name, value = path[-1], _resolve(self.peer, tree, path, value)
      if name in found and found[name] != value:
        raise ValueError(
          f"{self.peer}: {name} is given twice, as {found[name]!r} and {value!r}"
        )
      found[name] = value
    if unread:
      warnings.warn(
        f"{self.peer}: nothing here reads {_some(unread)}", UserWarning, stacklevel=3
      )
    return found

  def used(self, config: Config) -> dict[str, tuple[str, ...]]:
    """Which functions read each key of a configuration; `()` for what none does.

    >>> sections = Sections(
    ...   "verl", {"advantages": {"algorithm": ("gamma",)}}, {"": ("trainer",)})
    >>> sections.used({"algorithm": {"gamma": 1.0}, "trainer": {"total_epochs": 1}})
    {'algorithm.gamma': ('advantages',), 'trainer': ()}
    """
    tree = parse(self.peer, config)
    return {".".join(path): readers for path, _, readers in self._walk(tree, None)}

  def _walk(
    self,
    tree: Mapping[str, Any],
    first: str | None,
    prefix: Path = (),
    outer: tuple[str, ...] = (),
  ) -> Iterator[tuple[Path, Any, tuple[str, ...]]]:
    """Every option in the tree: its path there, its value, and who reads it.

    What is a section of one reader may be an option of another, which reads it whole:
    `first` gets its own, and for the rest the section counts, with its `outer` readers.
    """
    paths = self._paths()
    sections = self._section_paths()
    for key, value in tree.items():
      if key.startswith("_") or (not prefix and key in ("defaults", "hydra")):
        continue
      path = (*prefix, key)
      readers = _ending(paths, path)
      within = any(_holds(section, path) for section in sections)
      descends = isinstance(value, dict) and within
      if readers is not None and (first in readers or not descends):
        yield path, value, tuple(dict.fromkeys((*readers, *outer)))
      elif descends:
        yield from self._walk(value, first, path, (*outer, *(readers or ())))
      elif not (within and value is None):
        raise ValueError(self._unknown(path, value, first))

  def _paths(self) -> dict[Path, tuple[str, ...]]:
    """Every option of the peer by its whole path, and who reads it."""
    out: dict[Path, tuple[str, ...]] = {}
    for section, names in self.others.items():
      out |= {(*_split(section), name): () for name in names}
    for reader, sections in self.readers.items():
      for section, names in sections.items():
        for name in names:
          path = (*_split(section), name)
          out[path] = (*out.get(path, ()), reader)
    return out

  def _section_paths(self, reader: str | None = None) -> set[Path]:
    chosen = [self.readers[reader]] if reader else [*self.readers.values(), self.others]
    return {_split(section) for sections in chosen for section in sections}

  def _unknown(self, path: Path, value: Any, reader: str | None) -> str:
    """The message on a key that the peer does not have."""
    *above, key = path
    siblings = [p for p in self._paths() if len(p) > len(above)]
    if above:
      end = len(above)
      names = {p[-1] for p in siblings if p[-1 - end : -1] == tuple(above)}
      for section in self._section_paths():
        for i in range(len(section) - end):
          if section[i : i + end] == tuple(above):
            names.add(section[i + end])
    elif isinstance(value, dict):
      names = {name for section in self._section_paths() for name in section}
    else:
      own = self.readers[reader] if reader else {}
      names = {n for options in own.values() for n in options}
      names = names or {p[-1] for p in siblings}
    where = f" in {'.'.join(above)}" if above else ""
    hint = did_you_mean(key, names)
    return f"{self.peer} has no option {key!r}{where}{hint}"


def parse(peer: str, config: Config) -> dict[str, Any]:
  """A config as nested dicts, from a mapping, dotted keys or command-line overrides.

  >>> parse("verl", {"algorithm.gamma": 1.0, "algorithm": {"lam": 0.9}})
  {'algorithm': {'gamma': 1.0, 'lam': 0.9}}
  >>> parse("verl", "python3 -m main_ppo algorithm.gamma=1.0 +data.seed=null")
  {'algorithm': {'gamma': 1.0}, 'data': {'seed': None}}
  """
  if config is None:
    return {}
  if isinstance(config, str) or (
    isinstance(config, Sequence) and any("=" in str(word) for word in config)
  ):
    return _overrides(peer, config)
  if not hasattr(config, "keys"):
    raise TypeError(
      f"{peer}: the config must be a mapping or 'key=value' overrides, got {config!r}"
    )
  tree: dict[str, Any] = {}
  _merge(tree, config)
  return tree


def leaves(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
  """Every value of nested dicts with its path."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*prefix, key))
    else:
      yield (*prefix, key), value


def _merge(tree: dict[str, Any], config: Any) -> None:
  for key in config.keys():  # noqa: SIM118 (ConfigDict iterates otherwise)
    value = config[key]
    *sections, name = str(key).split(".")
    node = tree
    for section in sections:
      if not isinstance(node.get(section), dict):
        node[section] = {}
      node = node[section]
    if not hasattr(value, "keys"):
      node[name] = value
      continue
    if not isinstance(node.get(name), dict):
      node[name] = {}
    _merge(node[name], value)


def _overrides(peer: str, config: str | Sequence[str]) -> dict[str, Any]:
  """`key=value` words, as a command line has them; its launcher is left out."""
  words = config
  if isinstance(words, str):
    words = shlex.split(words.replace("\\\n", " "), comments=True)
  words = [str(word) for word in words]
  for i, word in enumerate(words):
    if word == "-m" or word.endswith(".py"):
      words = words[i + 1 + (word == "-m") :]
      break
  tree: dict[str, Any] = {}
  for word in words:
    if word[:1] in "-~$":  # options of the launcher, deletions, "$@"
      continue
    match = re.fullmatch(r"\+{0,2}([\w.]+)=(.*)", word, re.DOTALL)
    if match is None:
      raise ValueError(
        f"{peer}: {word!r} is no 'key=value' override; load YAML into a mapping first"
      )
    _merge(tree, {match[1]: _scalar(peer, match[1], match[2].strip())})
  return tree


def _scalar(peer: str, key: str, text: str) -> Any:
  """The value of an override as Hydra reads it."""
  if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
    return text[1:-1]
  if text.startswith("[") and text.endswith("]"):
    items = filter(None, map(str.strip, text[1:-1].split(",")))
    return [_scalar(peer, key, item) for item in items]
  named = {"null": None, "none": None, "": None, "true": True, "false": False}
  if text.lower() in named:
    return named[text.lower()]
  for kind in (int, float):
    try:
      value = kind(text)
    except ValueError:
      continue
    if "_" in text:
      raise ValueError(
        f"{peer}: {key}={text} is the number {value:g} to Hydra and YAML, which read "
        f"'_' as a digit separator; write decimals on both sides, as in 0.5_2.0"
      )
    return value
  return text


def _resolve(peer: str, tree: Mapping[str, Any], path: Path, value: Any) -> Any:
  """`value`, or what the interpolation that it is stands for."""
  for _ in range(8):  # a chain of references; a circle ends
    if not isinstance(value, str) or "$" not in value:
      return value
    match = re.fullmatch(r"\$\{(oc\.select:)?(\.?[\w.]+)(?:,(.*))?\}", value)
    if match is None:
      break
    target = _split(match[2].lstrip("."))
    target = (*path[:-1], *target) if match[2].startswith(".") else target
    found, known = _lookup(tree, target)
    if not known and not (match[1] and match[3] is not None):
      break
    value = found if known else _scalar(peer, path[-1], match[3])
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


def _split(section: str) -> Path:
  return tuple(section.split(".")) if section else ()


def _ending(paths: Mapping[Path, tuple[str, ...]], end: Path) -> tuple[str, ...] | None:
  """The readers of the options whose whole path ends so; None if there is none."""
  found = [r for path, r in paths.items() if path[-len(end) :] == end]
  return (
    tuple(dict.fromkeys(x for readers in found for x in readers)) if found else None
  )


def _holds(section: Path, part: Path) -> bool:
  """Whether `part` is a stretch of the section's path."""
  n = len(part)
  return any(section[i : i + n] == part for i in range(len(section) - n + 1))


def _some(keys: list[str], most: int = 6) -> str:
  if len(keys) <= most:
    return ", ".join(keys)
  return f"{len(keys)} of its keys, such as {', '.join(keys[:most])}; `used` lists them"


def choice(peer: str, key: str, value: Any, choices: tuple) -> Any:
  """`value`, if it is one of `choices`.

  >>> choice("slime", "tis_mode", "drop", ("truncate", "clip", "mask"))
  Traceback (most recent call last):
  ...
  ValueError: slime: tis_mode must be one of 'truncate', 'clip', 'mask'; got 'drop'
  """
  if value not in choices:
    raise ValueError(f"{peer}: {key} must be one of {_list(choices)}; got {value!r}")
  return value


def flag(peer: str, key: str, value: Any) -> bool:
  """`value`, if it is a bool."""
  if not isinstance(value, bool):
    raise ValueError(f"{peer}: {key} must be true or false; got {value!r}")
  return value


def number(
  peer: str,
  key: str,
  value: Any,
  *,
  above: float | None = None,
  at_least: float | None = None,
) -> float:
  """`value` as a float; text such as `"1e-4"`, as YAML leaves it, is read.

  >>> number("verl", "clip_ratio_c", "3", above=1.0)
  3.0
  >>> number("SkyRL", "tis_imp_ratio_cap", -1.0, above=0.0)
  Traceback (most recent call last):
  ...
  ValueError: SkyRL: tis_imp_ratio_cap must be above 0; got -1.0
  """
  try:
    result = float("nan") if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    result = float("nan")
  if math.isnan(result):
    raise ValueError(f"{peer}: {key} must be a number; got {value!r}")
  if above is not None and not result > above:
    raise ValueError(f"{peer}: {key} must be above {above:g}; got {value!r}")
  if at_least is not None and not result >= at_least:
    raise ValueError(f"{peer}: {key} must be at least {at_least:g}; got {value!r}")
  return result


def band(
  peer: str, low_key: str, low: Any, high_key: str, high: Any, *, above: float = 0.0
) -> tuple[float, float]:
  """Two bounds of a ratio, both positive and in order.

  >>> band("ROLL", "ratio_low", 1.2, "ratio_high", 0.8)
  Traceback (most recent call last):
  ...
  ValueError: ROLL: ratio_low (1.2) is above ratio_high (0.8); nothing would pass
  """
  low = number(peer, low_key, low, above=above)
  high = number(peer, high_key, high, above=above)
  order(peer, low_key, low, high_key, high)
  return low, high


def order(peer: str, low_key: str, low: float, high_key: str, high: float) -> None:
  """Refuses two bounds that nothing can lie between."""
  if low > high:
    raise ValueError(
      f"{peer}: {low_key} ({low:g}) is above {high_key} ({high:g}); nothing would pass"
    )


def _list(choices: tuple) -> str:
  return ", ".join(repr(item) for item in choices)
