"""What a stage of a corrector is: a pure function with its thresholds bound."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from tis_jax.corrections.state import State
from tis_jax.diagnostics.metrics import Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a chain: a pure function with its thresholds bound.

  Attributes:
    run: `run(batch, state, **thresholds, **options) -> (state, metrics)`.
    thresholds: the leaves, so that a sweep over them does not recompile.
    name: what its metrics are called after.
    makes: what it changes: the "weight" (made of a ratio, once a chain), the "mask", or
      the "scale" of a weight that an earlier stage made.
    options: everything static that `run` takes.
    needs: the keyword arguments of the chain that it cannot do without.
    pools: whether what it does to a row depends on other rows of the batch (a batch
      mean, a prompt group, a cap it estimates), so that micro-batches would differ.
  """

  run: Callable[..., tuple[State, Metrics]] = dataclasses.field(
    metadata={"static": True}
  )
  thresholds: Mapping[str, Any]
  name: str = dataclasses.field(metadata={"static": True})
  makes: Literal["weight", "mask", "scale"] = dataclasses.field(
    metadata={"static": True}
  )
  options: tuple[tuple[str, Any], ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )
  needs: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
  pools: bool = dataclasses.field(default=False, metadata={"static": True})
