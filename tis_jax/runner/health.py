"""What the samplers of a run say of themselves, as metrics."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

# Those of a fleet together; of the others the mean is told.
_SUMMED = ("tokens_per_s", "switches", "refused")


def sampler_health(heartbeats: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Numbers of the last record of every sampler, pooled over samplers.

  Args:
    heartbeats: from `Store.heartbeats`.

  Returns:
    `sampler/NAME`: the sum of rates and counts of events, the mean of everything else
    (occupancy, cache use, queue, seconds by phase), over those that told it.

  Example:
    >>> beats = {"a": {"health": {"tokens_per_s": 100.0, "occupancy": 0.5}},
    ...          "b": {"health": {"tokens_per_s": 300.0, "occupancy": 1.0}}, "c": {}}
    >>> sampler_health(beats)
    {'sampler/tokens_per_s': 400.0, 'sampler/occupancy': 0.75}
  """
  found: dict[str, list[float]] = {}
  for beat in heartbeats.values():
    for name, value in (beat.get("health") or {}).items():
      found.setdefault(name, []).append(float(value))
  return {
    f"sampler/{name}": sum(values) / (1 if name in _SUMMED else len(values))
    for name, values in found.items()
  }


def unrewarded(heartbeats: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Responses without a reward, by cause, as the samplers that are running count.

  >>> unrewarded({"a": {"unrewarded": {"hung": 2}}, "b": {"unrewarded": {"hung": 1}}})
  {'rollouts/reward_hung': 3.0}
  """
  counts: Counter[str] = Counter()
  for beat in heartbeats.values():
    counts.update(beat.get("unrewarded", {}))
  return {f"rollouts/reward_{cause}": float(counts[cause]) for cause in counts}
