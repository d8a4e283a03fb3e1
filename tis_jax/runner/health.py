"""What the samplers of a run say of themselves, as metrics."""

import math
from collections.abc import Mapping
from typing import Any

# Those of a fleet together; of the others the mean is told.
_SUMMED = ("tokens_per_s", "switches", "refused", "under_way")
# Counts since a sampler began, which stay true when it is silent.
COUNTS = "reward_"


def sampler_health(
  heartbeats: Mapping[str, Mapping[str, Any]], fresh: float = math.inf
) -> dict[str, float]:
  """What every sampler said last, pooled over samplers.

  Args:
    heartbeats: from `Store.heartbeats`.
    fresh: seconds; of those that were not heard of for longer only counts are told.

  Returns:
    `sampler/NAME`: the sum of rates and counts of events, the mean of everything else
    (occupancy, cache use, queue, seconds by phase), over those that told it; and
    `rollouts/reward_CAUSE`, responses without a reward so far.

  Example:
    >>> beats = {
    ...   "a": {"age": 1.0, "health": {"tokens_per_s": 100.0, "occupancy": 0.5}},
    ...   "b": {"age": 1.0, "health": {"tokens_per_s": 300.0, "occupancy": 1.0}},
    ...   "c": {"age": 999.0, "health": {"tokens_per_s": 7.0, "reward_hung": 2}},
    ... }
    >>> for name, value in sampler_health(beats, fresh=60.0).items():
    ...   print(name, value)
    sampler/tokens_per_s 400.0
    sampler/occupancy 0.75
    rollouts/reward_hung 2.0
  """
  found: dict[str, list[float]] = {}
  for beat in heartbeats.values():
    for name, value in (beat.get("health") or {}).items():
      if name.startswith(COUNTS):
        found.setdefault(f"rollouts/{name}", []).append(float(value))
      elif beat["age"] <= fresh:
        found.setdefault(f"sampler/{name}", []).append(float(value))
  summed = {f"sampler/{name}" for name in _SUMMED}
  return {
    name: sum(values)
    if name in summed or name.startswith(f"rollouts/{COUNTS}")
    else sum(values) / len(values)
    for name, values in found.items()
  }
