"""Large values on a memory file system, without the copies of a general store.

In shared memory the time of a publication is that of touching fresh pages, and a
general store touches them several times: a copy into its own buffers, one into the
file, and the same way back. Here a value goes from the caller's memory into the file,
and is read where it lies. Paths and files are those of TensorStore's file driver, so
both may be used on one store: a value is written beside its key, under a name that the
driver's listings leave out, and appears whole by a rename.
"""

import mmap
import os
import secrets
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tis_jax.store.location import UNLISTED, on_memory_file_system

Buffer = bytes | memoryview | mmap.mmap

# Below, a mapping costs more than a copy.
_MAPPED_BYTES = 1 << 20


class MemoryFiles:
  """Values as files below a directory of shared memory.

  >>> MemoryFiles.at("file:///srv/run/") is None  # a disk, whose writes want a sync
  True
  """

  def __init__(self, folder: Path):
    self._folder = folder

  @classmethod
  def at(cls, url: str) -> "MemoryFiles | None":
    """The files of a store's URL; None where they are not in memory."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "file" or "|" in url or not on_memory_file_system(path):
      return None
    return cls(Path(path))

  def takes(self, key: str) -> bool:
    """Whether a key is a path below the directory; the driver refuses the others.

    >>> files = MemoryFiles(Path("/dev/shm/doctest"))
    >>> files.takes("params/v1/w.0000"), files.takes("../w"), files.takes("/w")
    (True, False, False)
    """
    names = key.split("/")
    bad = any(name in ("", ".", "..") or name.endswith(UNLISTED) for name in names)
    return not bad and "\0" not in key

  def read(self, key: str) -> Buffer | None:
    """The value of `key`, large ones mapped; None where it is missing.

    A mapping outlives the key's deletion.
    """
    try:
      with (self._folder / key).open("rb") as file:
        if os.fstat(file.fileno()).st_size < _MAPPED_BYTES:
          return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return None

  def write(self, key: str, value: Buffer) -> None:
    """Writes `key`, whatever was there."""
    beside = self._beside(key, value)
    beside.replace(self._folder / key)

  def create(self, key: str, *parts: Buffer) -> bool:
    """Writes `key` if it is missing; returns whether it was."""
    beside = self._beside(key, *parts)
    try:
      os.link(beside, self._folder / key)
    except FileExistsError:
      return False
    finally:
      beside.unlink()
    return True

  def _beside(self, key: str, *parts: Buffer) -> Path:
    path = self._folder / key
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNLISTED}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with beside.open("wb") as file:
        file.writelines(parts)
    except OSError:
      # Of a full store above all: what did not fit must not go on filling it.
      beside.unlink(missing_ok=True)
      raise
    return beside
