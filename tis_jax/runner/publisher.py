"""Publication beside the learner's steps: to the host, encoded, written, announced."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax import models
from tis_jax.learner import local_blocks
from tis_jax.runner.settings import Settings
from tis_jax.runner.team import Team
from tis_jax.store import Store


def publisher_of(settings: Settings, store: Store, team: Team) -> "Publisher":
  """The publisher of a run, in the dtype that its samplers read."""
  sampler = settings.sampler
  as_bf16 = sampler.precision == "bfloat16" and not sampler.native.head
  return Publisher(
    store,
    settings.store.keep,
    dtype="bfloat16" if as_bf16 else None,
    part=team.index,
    parts=team.count,
  )


class Publisher:
  """Publishes one version at a time in a thread, while the next update computes.

  A context manager; leaving it waits for what is under way.

  Attributes:
    seconds: what the publication that ended last took.

  Args:
    store: of the run.
    keep: versions of the params that stay in the store.
    dtype: that the samplers read; None leaves params as they are.
    flatten: params as arrays by name, as the store has them.
    part: number of this process.
    parts: how many publish together, each the shards that it holds.
  """

  def __init__(
    self,
    store: Store,
    keep: int,
    *,
    dtype: str | None = None,
    flatten: Callable[[nnx.State], Mapping[str, jax.Array]] = models.flatten,
    part: int = 0,
    parts: int = 1,
  ):
    self._store, self._keep, self._flatten = store, keep, flatten
    self._part, self._parts = part, parts
    self._thread = ThreadPoolExecutor(1, "publisher")
    self._pending: Future | None = None
    self.seconds = 0.0

    def snapshot(params):
      return models.cast(params, dtype) if dtype else jax.tree.map(jnp.copy, params)

    # Buffers of its own: the next update is given those of the params.
    self._snapshot = jax.jit(snapshot)

  def publish(self, version: int, params: nnx.State, info: Mapping[str, Any]) -> None:
    """Starts publishing `params`, which may be in the making; waits for the one before.

    Raises:
      StoreError: what made the publication before this one fail.
    """
    self.wait()
    began = time.monotonic()
    flat = self._flatten(self._snapshot(params))
    self._pending = self._thread.submit(self._write, version, flat, dict(info), began)

  def check(self) -> None:
    """Raises what made a publication fail, if one has."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def wait(self) -> None:
    """Blocks until nothing is being published; raises what made it fail."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def __enter__(self) -> "Publisher":
    return self

  def __exit__(self, *_) -> None:
    self._thread.shutdown()

  def _write(self, version, flat, info, began):
    # All copies to the host are under way before the first of them is waited for.
    if self._parts == 1:
      self._store.publish(version, jax.device_get(flat), info)
    else:
      blocks = local_blocks(flat)
      self._store.publish_blocks(
        version, blocks, info, part=self._part, parts=self._parts
      )
    self.seconds = time.monotonic() - began
    if self._part == 0:
      self._store.delete_params(keep=self._keep)
