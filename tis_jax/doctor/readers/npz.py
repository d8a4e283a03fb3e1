"""Arrays in an `.npz` file, under anybody's names for them."""

import zipfile
from pathlib import Path

import numpy as np

from tis_jax.doctor import columns
from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.readers.tables import of_columns

BYTES_LIMIT = 8 << 30
"""That an archive may unpack to."""


def read_npz(path: Path) -> Dump:
  """The columns of the file that `tis_jax.doctor.columns` knows; no object arrays."""
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(info.file_size for info in archive.infolist())
  except zipfile.BadZipFile as error:
    raise DumpError(f"{path} is no npz file: {error}") from error
  if size > BYTES_LIMIT:
    raise DumpError(f"{path} unpacks to {size:,} bytes, more than {BYTES_LIMIT:,}")
  with np.load(path, allow_pickle=False, max_header_size=10_000) as file:
    taken = columns.match(file.files)
    arrays = {}
    for field, name in taken.items():
      try:
        arrays[field] = file[name]
      except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in str(error):
          why = (
            "it holds Python objects, which are not read: save one array of numbers, "
            "padded to [rows, tokens]"
          )
        raise DumpError(f"{path}, array {name!r}: {why}") from error
    names = list(file.files)
  return of_columns(arrays, taken, names, str(path))
