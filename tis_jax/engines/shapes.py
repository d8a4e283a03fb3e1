"""Whether what an engine gives has a place for every row."""

import numpy as np

from tis_jax.engines.protocol import Generation
from tis_jax.rollouts.record import ARRAYS


def check_shapes(generation: Generation, rows: int) -> None:
  """Refuses what is not of the shapes that `Generation` says.

  Raises:
    ValueError: naming the field.
  """
  # Anyone may write an engine, and rows that are out of step would be rewarded for each
  # other's answers.
  length = np.shape(generation.tokens)[-1]
  for name, value in generation._asdict().items():
    if value is None and name in Generation._field_defaults:
      continue
    axes, found = ARRAYS[name][1], np.shape(value)
    known = {"B": rows, "T": length, "O": rows * length + 1}
    if len(found) != len(axes) or found != tuple(map(known.get, axes, found)):
      wanted = ", ".join(str(known.get(axis, axis)) for axis in axes)
      raise ValueError(f"the engine's {name} has shape {found}, wants ({wanted})")
