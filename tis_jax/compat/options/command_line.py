"""A peer's command line, as pairs of a dotted key and its value."""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_FLAG = re.compile(r"--([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_ARRAY = re.compile(r"\$\{\w+\[")
_FILE = re.compile(r".+\.(ya?ml|json|toml)")
FILE = "@"
"""The key under which a file of options is named."""


def words_of(line: str | Sequence[str]) -> list[str]:
  """The words of a command line, its comments and broken lines put right."""
  if isinstance(line, str):
    line = shlex.split(line.replace("\\\n", " "), comments=True)
  return [str(word) for word in line]


def overrides(peer: str, words: list[str]) -> Iterator[tuple[str, Any]]:
  """The pairs of a Hydra command line, `key=value`; its launcher is left out.

  A file of options among them is the value of `@`.

  >>> list(overrides("verl", words_of("python3 main.py a.b=1 +c='[x, 2]' d.yaml")))
  [('a.b', 1), ('c', ['x', 2]), ('@', 'd.yaml')]
  """
  flag = ""
  for word in words[_launcher([w for w in words if "=" not in w], words) :]:
    before, flag = flag, ""
    if word[:1] in "-~$":  # options of the launcher, deletions, "$@"
      flag = word if word.startswith("--") and "=" not in word else ""
      continue
    match = re.fullmatch(r"\+{0,2}([\w.]+)=(.*)", word, re.DOTALL)
    if match is not None:
      yield match[1], scalar(peer, match[1], match[2].strip())
    elif _FILE.fullmatch(word):
      yield FILE, word
    elif not before:
      raise ValueError(
        f"{peer}: {word!r} is no 'key=value' override; load YAML into a mapping first"
      )


def flags(
  peer: str, words: list[str], has: Callable[[str], bool]
) -> Iterator[tuple[str, Any]]:
  """The pairs of an argparse command line; its launcher is left out.

  `--name` is true, `--name x` and `--name=x` one value, `--name x y` a list; dashes in
  a name are underscores, and `--no-name` says that `name` is false. A file of options,
  `config.yaml` before the flags or `@ config.toml`, is the value of `@`.

  Args:
    peer: its name in messages.
    words: of the command line.
    has: whether the peer has an option of that name.

  Raises:
    ValueError: words that belong to no flag; an array of the shell's, whose options
      are not here.

  >>> has = {"use_tis", "clip", "offload"}.__contains__
  >>> line = "torchrun --nproc 2 train.py --use-tis --clip 0.5 5 --no-offload"
  >>> list(flags("a peer", words_of(line), has))
  [('use_tis', True), ('clip', [0.5, 5]), ('offload', False)]
  """
  named = [bool(_FLAG.fullmatch(word)) and has(_name(word)) for word in words]
  first = named.index(True) if True in named else len(words)
  groups: list[list[str]] = [[]]
  for word in words[_launcher(words[:first], words) :]:
    if _ARRAY.search(word):
      raise ValueError(
        f"{peer}: the options in {word} are not here; write them out in its place"
      )
    if word == FILE and len(groups) > 1 and len(groups[-1]) == 1:
      groups[-1] = [FILE]  # `--section @ file`
    elif word == FILE or _FLAG.fullmatch(word):
      groups.append([word])
    elif word != "$@":
      groups[-1].append(word)
  command, *options = groups
  files = [word for word in command if _FILE.fullmatch(word)]
  for word in command:
    if (
      not (options or files) or word.endswith(":") or ("=" in word and has(_name(word)))
    ):
      raise ValueError(
        f"{peer}: {word!r} is no '--flag'; load a file into a mapping first"
      )
  yield from ((FILE, file) for file in files)
  for flag, *values in options:
    _, equals, value = flag.partition("=")
    yield _pair(peer, _name(flag), [value, *values] if equals else values, has)


def scalar(peer: str, key: str, text: str) -> Any:
  """The value of an override as Hydra reads it."""
  if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
    return text[1:-1]
  if text.startswith("[") and text.endswith("]"):
    items = filter(None, map(str.strip, text[1:-1].split(",")))
    return [scalar(peer, key, item) for item in items]
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


def _launcher(candidates: list[str], words: list[str]) -> int:
  """How many words stand before the options: `torchrun ... train.py`, `python -m x`."""
  for word in candidates:
    if word in ("-m", "--module"):
      return words.index(word) + 2
    if word.endswith(".py"):
      return words.index(word) + 1
  return 0


def _name(flag: str) -> str:
  return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def _pair(
  peer: str, name: str, values: list[str], has: Callable[[str], bool]
) -> tuple[str, Any]:
  *sections, last = name.split(".")
  positive = ".".join([*sections, last.removeprefix("no_")])
  if not values and not has(name) and has(positive):
    return positive, False
  read = [scalar(peer, name, value) for value in values]
  return name, True if not read else read[0] if len(read) == 1 else read
