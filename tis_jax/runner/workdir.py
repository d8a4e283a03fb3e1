"""What a run writes down of itself, and holds a later attempt against."""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tis_jax import tasks
from tis_jax.runner.config import ConfigError
from tis_jax.runner.settings import default_config
from tis_jax.store import default_url

# What may change between two attempts at one run without making it another run.
_FREE = (
  "train.steps",
  "sampler.count",
  "processes.",
  "eval.",
  "checkpoint.",
  "log.",
  "guard.",
  "data.gsm8k_dir",
  "data.reward_",
)


class ConfigChangedError(ConfigError):
  """A workdir holds a run with other settings."""


class WorkdirInUseError(RuntimeError):
  """Another learner runs in the workdir."""


@contextlib.contextmanager
def locked(workdir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
  """While entered, no other learner enters the same workdir.

  The lock is the kernel's, on an open file: it ends with the process that holds it,
  however that ends, and what is written in the file only names the process.

  Args:
    workdir: of a run.
    say: told in a sentence if there are no locks where the workdir is.

  Raises:
    WorkdirInUseError: another learner holds it; says which process.
  """
  with (workdir / "lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or "another process"
      raise WorkdirInUseError(
        f"{workdir} is in use: a learner runs there, {holder}. Wait for it or end it, "
        "or use another --workdir"
      ) from error
    except OSError as error:
      # Some network file systems have no locks.
      say(
        f"{workdir} cannot be locked ({error.strerror}): see to it that no second "
        "learner is started there"
      )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


@dataclasses.dataclass(frozen=True)
class Identity:
  """What tells a run from others, kept in the workdir.

  Attributes:
    run: id of the run; its store and checkpoints carry it.
    store: URL of its store.
    where: why the store is there, in words; "" if the config says so.
  """

  run: str
  store: str
  where: str = ""


def identify(store_url: str, workdir: Path) -> Identity:
  """The identity of the run in `workdir`; a new one for a new workdir.

  A run whose store was never opened has no config there yet: it may go to another URL.
  """
  path = workdir / "run.json"
  run = secrets.token_hex(6)
  if path.exists():
    identity = Identity(**json.loads(path.read_text()))
    begun = (workdir / "config.json").exists()
    if begun or store_url == ("" if identity.where else identity.store):
      return identity
    run = identity.run
  url, where = (store_url, "") if store_url else default_url(run)
  identity = Identity(run, url, where)
  write_whole(path, json.dumps(dataclasses.asdict(identity), indent=2) + "\n")
  return identity


def write_whole(path: Path, text: str) -> None:
  """Writes a file that is there whole, or as it was before, whatever happens."""
  partial = path.with_name(f".{path.name}.partial")
  partial.write_text(text)
  partial.replace(path)


def check_config(config: ConfigDict, workdir: Path) -> None:
  """Holds the settings against those of the run that the workdir holds, if any.

  Raises:
    ConfigChangedError: the workdir's run has other settings; says which.
  """
  changed = changes(config, workdir, _FREE)
  if changed:
    raise ConfigChangedError(
      f"{workdir} holds a run with other settings; use another --workdir, or the "
      "settings it began with:\n  " + "\n  ".join(changed)
    )


def changes(config: ConfigDict, workdir: Path, free: tuple[str, ...] = ()) -> list[str]:
  """In which settings a config differs from that of the run in `workdir`, in words.

  A setting that there was not then counts as its default.

  Args:
    config: as it would be now.
    workdir: of a run; no differences where there is none.
    free: beginnings of the names that may differ.
  """
  path = workdir / "config.json"
  if not path.exists():
    return []
  before, now = flat(json.loads(path.read_text())), flat(_settings(config))
  default = flat(_settings(default_config()))
  before = {name: default.get(name) for name in now} | before
  return [
    f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name) and not name.startswith(free)
  ]


def keep_config(config: ConfigDict, workdir: Path) -> None:
  """Writes `config.json`."""
  text = json.dumps(_settings(config), indent=2)
  write_whole(workdir / "config.json", text + "\n")


def load_config(workdir: Path) -> ConfigDict:
  """The config of the run in `workdir`.

  Raises:
    FileNotFoundError: there is no run.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{workdir} holds no run")
  return ConfigDict(json.loads(path.read_text()))


def _settings(config: ConfigDict) -> dict[str, Any]:
  settings = json.loads(config.to_json_best_effort())
  if "data" in settings:
    # Another attempt, or an evaluation, may be made from another folder.
    data = settings["data"]
    data["task"], data["options"] = tasks.settled(data["task"], data["options"])
  return settings


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested settings by their dotted names.

  >>> flat({"a": {"b": 1}, "c": 2})
  {'a.b': 1, 'c': 2}
  """
  items = {}
  for name, value in settings.items():
    if isinstance(value, Mapping) and value:
      items |= flat(value, f"{prefix}{name}.")
    else:
      items[f"{prefix}{name}"] = value
  return items
