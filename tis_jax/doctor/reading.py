"""From a path or URL to a dump, by what is there."""

from pathlib import Path

from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.readers.jsonl import read_jsonl
from tis_jax.doctor.readers.npz import read_npz
from tis_jax.doctor.readers.slime import read_slime
from tis_jax.doctor.readers.workdir import (
  is_record,
  read_record,
  read_store,
  read_workdir,
)

_KINDS = (
  "an npz file, a JSON line a row (NeMo-RL's train_data_step*.jsonl, prime-rl's "
  "token_exports, ...), slime's .pt, a workdir of tis train, or the URL of its store"
)


def read(path: str | Path) -> Dump:
  """Reads a dump, whichever framework wrote it.

  Args:
    path: an npz file with `old_logp`, `sampler_logp`, `mask` and maybe more, under any
      of the names in `tis_jax.doctor.columns`; a file of one JSON object a line
      (NeMo-RL, prime-rl, verl, others); slime's `.pt`; a folder (`.jsonl` files of one
      step, or a run's workdir); a store's URL. Which one is told by the first bytes.

  Returns:
    `Dump`; its `columns` and `notes` say what was taken for what.

  Raises:
    DumpError: nothing is there, it is no such file, or it lacks log-probs of one side.
      Nothing in a file is executed.
  """
  if "://" in str(path):
    return read_store(str(path))
  path = Path(path).expanduser()
  try:
    if path.is_dir():
      return _folder(path)
    if not path.exists():
      raise DumpError(f"there is no file {path}")
    with path.open("rb") as file:
      start = file.read(64)
    if not start:
      raise DumpError(f"{path} is empty")
    if start.startswith(b"PK"):
      return read_slime(path) if path.suffix in (".pt", ".pth") else read_npz(path)
    if is_record(path):
      return read_record(path)
    if start.startswith(b"\x93NUMPY"):
      raise DumpError(
        f"{path} is one array; save both sides: numpy.savez(FILE, old_logp=..., "
        "sampler_logp=..., mask=...)"
      )
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
      raise DumpError(
        f"{path} is a pickle, which could run anything and is not read; save arrays "
        "with numpy.savez"
      )
    if start.lstrip()[:1] in (b"{", b"["):
      return read_jsonl(path)
  except OSError as error:
    raise DumpError(f"{path} cannot be read: {error}") from error
  raise DumpError(f"{path} begins with {start[:8]!r}: it is not {_KINDS}")


def _folder(folder: Path) -> Dump:
  """A workdir, or a folder of dumps: its newest."""
  if not any(folder.glob("*.npz")) and not (folder / "run").is_file():
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    files = [path for path in files if path.name != "metrics.jsonl"]
    if files:
      return read_jsonl(files[-1])
  return read_workdir(folder)
