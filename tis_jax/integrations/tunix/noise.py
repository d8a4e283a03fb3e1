"""Fresh noise in every call of Tunix's sampler, the same noise in the same run."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class FreshNoise:
  """Stands where a rollout's `generate` stood, and gives every call a seed of its own.

  Tunix's sampler turns `seed=None` into key 0 and any other seed into its key, in
  every call: the rows of one call differ, but the next call, micro-batch or step draws
  the same uniform numbers again. The seed here is of the base (the config's seed),
  the step and the number of the call in it, so a run gone on with draws what it would
  have drawn.
  """

  def __init__(self, generate: Callable, step: Callable[[], int]):
    """Wraps `generate(prompts, rollout_config)`; `step()` is the step that it is at."""
    self._generate, self._step = generate, step
    self._lock, self._last, self._calls = threading.Lock(), -1, 0

  def __call__(self, prompts: Any, rollout_config: Any, **options: Any) -> Any:
    with self._lock:
      step = self._step()
      self._calls = 0 if step != self._last else self._calls + 1
      self._last, call = step, self._calls
    config = dataclasses.replace(
      rollout_config,
      seed=seed_of(rollout_config.seed, step, call),
      return_logprobs=True,
    )
    return self._generate(prompts, config, **options)


def seed_of(base: Any, step: int, call: int) -> int:
  """A seed of 31 bits for one call.

  Args:
    base: what the run is seeded with: None, an integer or a jax key.
    step: of the run, 0 or more.
    call: its number within the step.

  >>> seed_of(None, 0, 0) == seed_of(0, 0, 0), seed_of(0, 0, 1) == seed_of(0, 1, 0)
  (True, False)
  """
  if isinstance(base, jax.Array) and jax.dtypes.issubdtype(
    base.dtype, jax.dtypes.prng_key
  ):
    base = jax.random.key_data(base)
  words = np.ravel(np.asarray(0 if base is None else base)).astype(np.int64)
  entropy = [int(word) & 0xFFFFFFFFFFFFFFFF for word in words]
  mixed = np.random.SeedSequence([len(entropy), *entropy, step, call])
  return int(mixed.generate_state(1)[0] >> 1)
