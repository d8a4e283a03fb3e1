"""Where the options of a peer stand in its whole configuration."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tis_jax.compat.options.command_line import FILE
from tis_jax.compat.options.mappings import Config, Path, parse
from tis_jax.compat.options.references import resolve, split
from tis_jax.numerics.names import did_you_mean


class Sections(NamedTuple):
  """Where the options of a peer stand in its configuration.

  Sections are dotted paths from the root of the peer's YAML.

  Attributes:
    peer: the peer's name in messages.
    readers: for each function here, the sections it reads and its options in each.
    others: the names in a section that nothing here reads, each by itself or all in one
      text; a section itself, named in the one above it, stands for all that is in it,
      and `name*` for all that begin so. The root is "".
    flags: whether its command line is `--name value`, not `name=value`.
    files: the options that name a file of further options, which is not read here.
  """

  peer: str
  readers: Mapping[str, Mapping[str, Sequence[str]]]
  others: Mapping[str, Sequence[str]]
  flags: bool = False
  files: Sequence[str] = ()

  def locate(self, config: Config, reader: str) -> dict[str, Any]:
    """The options of one reader, from its own section or a whole configuration.

    A configuration may start at the root, at the section or anywhere between:
    `{"algorithm": {"gamma": 1}}`, `{"algorithm.gamma": 1}`, `{"gamma": 1}` and the
    command line's `"algorithm.gamma=1"` say the same, where the peer has flags
    `"--algorithm.gamma 1"`. `${a.b}` and `${oc.select:a.b,c}`
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
    tree = self.parse(config)
    found: dict[str, Any] = {}
    unread, files = [], []
    for path, value, readers in self._walk(tree, reader):
      if path[-1] in (FILE, *self.files):
        files.append(str(value))
      elif not readers:
        unread.append(".".join(path))
      if reader not in readers:
        continue
      name, value = path[-1], resolve(self.peer, tree, path, value)
      if name in found and found[name] != value:
        raise ValueError(
          f"{self.peer}: {name} is given twice, as {found[name]!r} and {value!r}"
        )
      found[name] = value
    messages = [f"nothing here reads {_some(unread)}"] if unread else []
    messages += [
      f"the options in {file} are not here; load it, and give them too"
      for file in files
    ]
    for message in messages:
      warnings.warn(f"{self.peer}: {message}", UserWarning, stacklevel=3)
    return found

  def used(self, config: Config) -> dict[str, tuple[str, ...]]:
    """Which functions read each key of a configuration; `()` for what none does.

    >>> sections = Sections(
    ...   "verl", {"advantages": {"algorithm": ("gamma",)}}, {"": ("trainer",)})
    >>> sections.used({"algorithm": {"gamma": 1.0}, "trainer": {"total_epochs": 1}})
    {'algorithm.gamma': ('advantages',), 'trainer': ()}
    """
    tree = self.parse(config)
    return {".".join(path): readers for path, _, readers in self._walk(tree, None)}

  def parse(self, config: Config) -> dict[str, Any]:
    """A configuration or command line as nested dicts, nothing in it checked."""
    paths = self._paths()

    def has(name):
      parts = split(name)  # what is in a section that is passed over is there as well
      starts = (parts[: i + 1] for i in range(len(parts)))
      return any(_ending(paths, start) is not None for start in starts)

    return parse(self.peer, config, has if self.flags else None)

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
    out: dict[Path, tuple[str, ...]] = {(FILE,): ()}
    for section, names in self.others.items():
      names = names.split() if isinstance(names, str) else names
      out |= {(*split(section), name): () for name in names}
    for reader, sections in self.readers.items():
      for section, names in sections.items():
        for name in names:
          path = (*split(section), name)
          out[path] = (*out.get(path, ()), reader)
    return out

  def _section_paths(self, reader: str | None = None) -> set[Path]:
    chosen = [self.readers[reader]] if reader else [*self.readers.values(), self.others]
    return {split(section) for sections in chosen for section in sections}

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
    else:
      own = self.readers[reader] if reader else {}
      names = {n for options in own.values() for n in options}
      near = {(), *map(split, own)}
      names |= {p[-1] for p in siblings if p[:-1] in near or not own}
      if isinstance(value, dict):
        names |= {name for section in self._section_paths() for name in section}
    where = f" in {'.'.join(above)}" if above else ""
    hint = did_you_mean(key, names - {FILE})
    return f"{self.peer} has no option {key!r}{where}{hint}"


def _ending(paths: Mapping[Path, tuple[str, ...]], end: Path) -> tuple[str, ...] | None:
  """The readers of the options whose whole path ends so; None if there is none."""
  found = [readers for path, readers in paths.items() if _ends(path, end)]
  return (
    tuple(dict.fromkeys(x for readers in found for x in readers)) if found else None
  )


def _ends(path: Path, end: Path) -> bool:
  tail = path[-len(end) :]
  if tail == end:
    return True
  some = tail[-1].endswith("*") and end[-1].startswith(tail[-1][:-1])
  return some and tail[:-1] == end[:-1]


def _holds(section: Path, part: Path) -> bool:
  """Whether `part` is a stretch of the section's path."""
  n = len(part)
  return any(section[i : i + n] == part for i in range(len(section) - n + 1))


def _some(keys: list[str], most: int = 6) -> str:
  if len(keys) <= most:
    return ", ".join(keys)
  return f"{len(keys)} of its keys, such as {', '.join(keys[:most])}; `used` lists them"
