"""Params on their way to a server: a directory of safetensors a version."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from tis_jax.models import unflatten, write_hugging_face
from tis_jax.models.params import config_of


class Handover:
  """Directories that a server reads params from; the newest one stays.

  Args:
    graph: of the decoder.
    folder: that the server sees, too, and nobody else writes to. What a holder that was
      killed has left there is deleted.
  """

  def __init__(self, graph: nnx.GraphDef, folder: Path):
    self._graph, self.folder = graph, folder
    self._last: Path | None = None
    for left in folder.glob("*/model.safetensors"):
      shutil.rmtree(left.parent, ignore_errors=True)

  def write(self, params: Mapping[str, np.ndarray], label: str) -> Path:
    """The directory of these params, in Hugging Face's layout."""
    path = self.folder / label
    write_hugging_face(path, config_of(self._graph), unflatten(self._graph, params))
    return path

  def taken(self, path: Path) -> None:
    """Deletes what was handed over before `path`."""
    if self._last is not None and self._last != path:
      shutil.rmtree(self._last, ignore_errors=True)
    self._last = path

  def clear(self) -> None:
    """Deletes it all."""
    if self._last is not None:
      shutil.rmtree(self._last, ignore_errors=True)
