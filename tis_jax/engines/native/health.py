"""What an engine has been doing: rates, occupancy, and where the time went."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

PHASES = ("read", "decode", "params", "host")
"""Reading prompts, drawing tokens, taking newer params, keeping books."""


class Health:
  """Counts of one call of `generate`, and of the calls before it.

  Example:
    >>> health = Health(slots=4)
    >>> with health.phase("decode"):
    ...   health.decoded(steps=10, tokens=30, places=640, capacity=1280, queue=2)
    >>> seen = health.metrics()
    >>> seen["occupancy"], seen["cache_use"], seen["queue"]
    (0.75, 0.5, 2.0)
  """

  def __init__(self, slots: int):
    self._slots = slots
    self._seconds: defaultdict[str, float] = defaultdict(float)
    self._counts: defaultdict[str, float] = defaultdict(float)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the seconds inside as those of a phase."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[name] += time.perf_counter() - began

  def add(self, **counts: float) -> None:
    """Counts."""
    for name, count in counts.items():
      self._counts[name] += count

  def decoded(
    self, *, steps: int, tokens: int, places: int, capacity: int, queue: int
  ) -> None:
    """Counts one call of the decoding loop.

    Args:
      steps: that it took.
      tokens: drawn for responses that went on.
      places: of the cache that were in use after it.
      capacity: places that there were.
      queue: responses that waited for a slot.
    """
    self.add(
      steps=steps,
      tokens=tokens,
      slot_steps=steps * self._slots,
      busy=tokens,
      calls=1,
      places=places / max(capacity, 1),
      queue=queue,
    )

  def metrics(self) -> dict[str, float]:
    """Means since the beginning.

    Returns:
      tokens_per_s; occupancy (share of slot steps that drew a token of a response);
      cache_use (share of places in use) and queue (responses that wait), means over
      calls of the decoding loop; steps; tokens; prompt_tokens; switches and refused
      (versions taken, or not, between steps); seconds/PHASE for each phase.
    """
    counts, seconds = self._counts, self._seconds
    total, calls = sum(seconds.values()), max(counts["calls"], 1)
    named = {
      "tokens_per_s": counts["tokens"] / total if total else 0.0,
      "occupancy": counts["busy"] / max(counts["slot_steps"], 1),
      "cache_use": counts["places"] / calls,
      "queue": counts["queue"] / calls,
    }
    for name in ("steps", "tokens", "prompt_tokens", "switches", "refused"):
      named[name] = float(counts[name])
    return named | {f"seconds/{name}": value for name, value in seconds.items()}
