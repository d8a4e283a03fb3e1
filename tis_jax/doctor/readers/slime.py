"""slime's debug dumps: `--save-debug-train-data` and `--save-debug-rollout-data`."""

from pathlib import Path

from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.readers.tables import of_rows
from tis_jax.doctor.readers.torch_file import read_torch

_HINT = (
  "; slime's rollout dump has the sampler's side alone: dump what the trainer made of "
  "it with --save-debug-train-data"
)


def read_slime(path: Path) -> Dump:
  """The `samples` of the file, a dict each; or columns that are lists of rows.

  Raises:
    DumpError: `read_torch` refuses it, or it holds no log-probs of two policies.
  """
  found = read_torch(path)
  if isinstance(found, dict) and isinstance(found.get("rollout_data"), dict):
    found = found["rollout_data"]  # before slime's format version 2
  samples = found.get("samples") if isinstance(found, dict) else found
  if samples is None and isinstance(found, dict):
    columns = {k: v for k, v in found.items() if isinstance(v, (list, tuple))}
    count = max(map(len, columns.values()), default=0)
    whole = {k: v for k, v in columns.items() if len(v) == count}
    samples = [{k: v[i] for k, v in whole.items()} for i in range(count)]
  if not isinstance(samples, list) or not all(isinstance(s, dict) for s in samples):
    raise DumpError(f"{path} holds no samples, a dict for each row")
  if not samples:
    raise DumpError(f"{path} has no rows")
  rows = [s for s in samples if not s.get("remove_sample")]
  names = {name for row in rows for name in row}
  return of_rows(rows, names, str(path), hint=_HINT)
