"""Tighter caps on the weights of a correction, for `guard.action = "tighten"`."""

import dataclasses
import math

from tis_jax.corrections import Chain, Stage

# What bounds a weight and keeps the token: pulled to 1, it costs bias and no token.
_CAPS = ("truncate", "clip")
# A cap this near to 1 is not pulled further; all weights are 1 there, but for rounding.
_NEAREST = 1.01


def tightened(correct: Chain, times: int) -> Chain:
  """A correction with caps nearer to 1: `high -> high ** (1 / 2**times)`.

  Each time halves the log of the cap, and of `clip`'s lower bound; none comes nearer to
  1 than 1.01. Rejections stay: a narrower one would starve what is left.

  Raises:
    ValueError: nothing in it caps a weight above 1.

  >>> from tis_jax.corrections import chain, reject, truncate
  >>> tightened(chain(reject(1.5), truncate(4.0)), times=1).stages[1]
  truncate(high=2.0, level='token')
  """
  if not any(map(_caps, correct.stages)):
    raise ValueError(
      f"guard.action='tighten' has no cap to tighten in {correct!r}: give the "
      "correction a truncate or a clip, or take another action"
    )
  return dataclasses.replace(
    correct,
    stages=tuple(
      _nearer_to_1(stage, times) if _caps(stage) else stage for stage in correct.stages
    ),
  )


def caps_of(correct: Chain) -> str:
  """The caps in a correction, in words."""
  return " and ".join(repr(stage) for stage in correct.stages if _caps(stage))


def _caps(stage: Stage) -> bool:
  high = stage.thresholds.get("high", 0.0)
  return stage.name in _CAPS and not stage.watched and 1 < high < math.inf


def _nearer_to_1(stage: Stage, times: int) -> Stage:
  share = max(0.5**times, math.log(_NEAREST) / math.log(stage.thresholds["high"]))
  bounds = {name: bound ** min(share, 1.0) for name, bound in stage.thresholds.items()}
  return dataclasses.replace(stage, thresholds=bounds)
