"""From a URL to an open key-value store."""

import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import tensorstore as ts

from tis_jax.store.errors import StoreUnreachableError

_SHARED_MEMORY = Path("/dev/shm")
_IN_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}
# Of values that are being written: TensorStore lists no key that ends so.
UNLISTED = ".__lock"


def default_url(name: str, needed_bytes: int = 1 << 30) -> tuple[str, str]:
  """A place on this machine for a run's store: shared memory if it has the room.

  Shared memory is small in containers (64 MB under Docker's defaults), counts as RAM,
  and is empty after a reboot.

  Args:
    name: last part of the path, such as the run id.
    needed_bytes: free space that the run should have.

  Returns:
    (url, a sentence saying where that is and why).

  >>> url, why = default_url("doctest")
  >>> url.startswith("file:///") and url.endswith("/tis_jax/doctest/")
  True
  """
  free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
  gib = 1 << 30
  shared, temporary = (folder / name for folder in default_folders())
  if free >= needed_bytes and os.access(_SHARED_MEMORY, os.W_OK):
    return f"{shared.as_uri()}/", f"shared memory, {free / gib:.1f} GiB free"
  return f"{temporary.as_uri()}/", (
    f"a temporary directory, because {_SHARED_MEMORY} has {free / gib:.1f} GiB free "
    f"and {needed_bytes / gib:.1f} GiB are wanted"
  )


def default_folders() -> tuple[Path, Path]:
  """Where `default_url` puts stores: in shared memory, or in a temporary folder."""
  temporary = Path(tempfile.gettempdir()).resolve()
  return _SHARED_MEMORY / "tis_jax", temporary / "tis_jax"


def normalized(url: str) -> str:
  """`url` ending in a slash, so that keys go below it.

  Raises:
    StoreUnreachableError: not a URL.

  >>> normalized("file:///srv/run")
  'file:///srv/run/'
  """
  if not urlsplit(url).scheme:
    hint = f"; did you mean {Path(url).absolute().as_uri()}/ ?" if url else ""
    raise StoreUnreachableError(f"{url!r} is not a store URL{hint}")
  return url if url.endswith("/") or "|" in url else f"{url}/"


def open_keyvalue(url: str, timeout: float) -> ts.KvStore:
  """The TensorStore key-value store at a normalised URL.

  `memory://` stores are shared inside this process, by their path, and with no other.

  Raises:
    StoreUnreachableError: unknown scheme, or no answer in `timeout` seconds.
  """
  try:
    return ts.KvStore.open(_spec(url), context=_context(url)).result(timeout=timeout)
  except Exception as error:
    raise StoreUnreachableError(f"cannot open store {url}: {error}") from error


def _spec(url: str) -> str | dict[str, str]:
  """What TensorStore opens for a URL: the URL, save for S3 servers other than Amazon's.

  >>> _spec("s3+http://127.0.0.1:9000/bucket/runs/a/")["path"]
  'runs/a/'
  """
  parts = urlsplit(url)
  if parts.scheme not in ("s3+http", "s3+https"):
    return url
  bucket, _, path = unquote(parts.path).removeprefix("/").partition("/")
  if not parts.netloc or not bucket:
    raise ValueError(f"an S3 server's URL is {parts.scheme}://HOST:PORT/BUCKET/PREFIX")
  endpoint = f"{parts.scheme.removeprefix('s3+')}://{parts.netloc}"
  return {"driver": "s3", "endpoint": endpoint, "bucket": bucket, "path": path}


def credentials_hint(url: str) -> str:
  """Where TensorStore looks for the credentials of a store; "" where it needs none.

  >>> credentials_hint("gs://bucket/run/")
  "GOOGLE_APPLICATION_CREDENTIALS, or gcloud's application-default login"
  """
  scheme = urlsplit(url).scheme
  if scheme in ("s3", "s3+http", "s3+https"):
    return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
  if scheme == "gs":
    return "GOOGLE_APPLICATION_CREDENTIALS, or gcloud's application-default login"
  return ""


@functools.cache
def _memory_context() -> ts.Context:
  return ts.Context()


def _context(url: str) -> ts.Context:
  parts = urlsplit(url)
  if parts.scheme == "memory":
    return _memory_context()
  # fsync protects against power loss; memory does not survive one anyway.
  in_memory = parts.scheme == "file" and on_memory_file_system(unquote(parts.path))
  return ts.Context({"file_io_sync": not in_memory})


def on_memory_file_system(path: str) -> bool:
  """Whether `path`, which need not exist yet, lies on tmpfs or ramfs (Linux only)."""
  try:
    lines = Path("/proc/mounts").read_text().splitlines()
  except OSError:
    return False
  mounts = {fields[1]: fields[2] for fields in map(str.split, lines)}
  path = os.path.realpath(path)
  while path not in mounts and path != os.path.dirname(path):
    path = os.path.dirname(path)
  return mounts.get(path) in _IN_MEMORY_FILE_SYSTEMS


def remove_empty_folders(url: str, prefix: str = "") -> None:
  """Removes the folders below a prefix that hold nothing; stores without any have none.

  A file system keeps the folder of every key that ever was, and of a writer that was
  killed the part that it had written: nobody may be writing there.
  """
  parts = urlsplit(url)
  if parts.scheme != "file":
    return
  for folder, _, files in os.walk(unquote(parts.path) + prefix, topdown=False):
    with contextlib.suppress(OSError):  # It holds something.
      for name in files:
        if name.endswith(UNLISTED):
          os.unlink(os.path.join(folder, name))
      os.rmdir(folder)
