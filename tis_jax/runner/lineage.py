"""Which learner step each version of the params is of, over all attempts at a run.

A version is never used twice: an attempt that goes on from a checkpoint publishes under
numbers above all earlier ones, also above those of steps that it takes again. Staleness
is counted in steps, so that a run that was killed counts as one that was not.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tis_jax.numerics.arrays import Array


class Lineage:
  """Versions as steps.

  Args:
    path: of the file that the attempts are kept in; None keeps nothing.

  >>> lineage = Lineage()
  >>> lineage.begins(version=0, step=0)
  >>> lineage.begins(version=8, step=5)  # from the checkpoint of step 5
  >>> lineage.steps(np.array([6, 8, 9])).tolist(), lineage.version(7)
  ([6, 5, 6], 10)
  """

  def __init__(self, path: Path | None = None):
    self._path = path
    self._attempts = [(0, 0)]
    if path is not None and path.exists():
      self._attempts = [tuple(pair) for pair in json.loads(path.read_text())]

  @classmethod
  def of(cls, attempts: Iterable[Sequence[int]]) -> "Lineage":
    """That of another process, from its `attempts`."""
    lineage = cls()
    lineage._attempts = [(version, step) for version, step in attempts]
    return lineage

  @property
  def attempts(self) -> list[tuple[int, int]]:
    """The first version of each attempt, and the step that it is of."""
    return list(self._attempts)

  def begins(self, version: int, step: int) -> None:
    """An attempt publishes the params of `step` as `version`, and goes on."""
    self._attempts = [x for x in self._attempts if x[0] < version] + [(version, step)]
    if self._path is not None:
      beside = self._path.with_suffix(".new")
      beside.write_text(json.dumps(self._attempts) + "\n")
      os.replace(beside, self._path)

  def steps(self, versions: Array) -> np.ndarray:
    """The steps of versions, int32."""
    versions = np.asarray(versions)
    begun, at = np.array(self._attempts).T
    which = np.searchsorted(begun, versions, side="right") - 1
    # Under a mask stands anything.
    return (versions - (begun - at)[np.maximum(which, 0)]).astype(np.int32)

  def step(self, version: int) -> int:
    """The step of one version."""
    return int(self.steps(np.array(version)))

  def version(self, step: int) -> int:
    """Under which number the newest attempt publishes a step."""
    begun, at = self._attempts[-1]
    return begun + step - at
