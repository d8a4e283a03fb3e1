"""A chain, taken apart by what frameworks have options for."""

from typing import NamedTuple

from tis_jax.corrections import Chain, Stage

NEVER = 1e-9
"""A lower bound that no ratio reaches: they are held above exp(-20) = 2e-9."""


class Parts(NamedTuple):
  """A chain, taken apart by what frameworks have options for.

  Attributes:
    weight: the stage that weighs, or None.
    before: the stages that reject, in order, that stand before it.
    after: those that stand behind it.
  """

  weight: Stage | None
  before: tuple[Stage, ...]
  after: tuple[Stage, ...]

  @property
  def rejects(self) -> tuple[Stage, ...]:
    return (*self.before, *self.after)


def parts_of(correct: Chain) -> Parts | None:
  """Its weight and its rejections; None for a chain that does anything else."""
  weight, before, after = None, [], []
  for stage in correct.stages:
    if stage.watched:
      continue
    if stage.makes == "weight":
      weight = stage
    elif stage.makes == "mask":
      (before if weight is None else after).append(stage)
    else:
      return None
  return Parts(weight, tuple(before), tuple(after))


def is_stage(stage: Stage | None, *names: str, level: str | None = None) -> bool:
  """Whether a stage is one of `names`, at `level`."""
  return (
    stage is not None
    and stage.name in names
    and level in (None, stage.settings.get("level"))
  )


def bounds_of(stage: Stage) -> tuple[float, float]:
  """(low, high) of a stage that has them; a missing one never acts."""
  low, high = stage.settings.get("low"), stage.settings.get("high")
  return (0.0 if low is None else float(low)), (1e9 if high is None else float(high))
