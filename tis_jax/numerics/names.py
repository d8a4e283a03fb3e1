"""Names that do not exist, and which was meant."""

import difflib
from collections.abc import Collection

_NEAR = 0.5  # of the letters in common: less is another word
_FEW = 30


def did_you_mean(name: str, known: Collection[str]) -> str:
  """How the error on an unknown name goes on: the nearest, or else all that there are.

  Where nothing is near and there are many, the nearest is still the best hint.

  >>> did_you_mean("clip_hihg", ["clip_low", "clip_high"])
  "; did you mean 'clip_high'?"
  >>> did_you_mean("vanilla", ["ppo", "grpo"])
  "; there are 'grpo', 'ppo'"
  >>> did_you_mean("vanilla", [])
  ''
  """
  names = sorted(map(str, known))
  near = difflib.get_close_matches(str(name), names, 1, _NEAR)
  if not near and len(names) > _FEW:
    near = difflib.get_close_matches(str(name), names, 1, 0.0)
  if near:
    return f"; did you mean {near[0]!r}?"
  return f"; there are {', '.join(map(repr, names))}" if names else ""
